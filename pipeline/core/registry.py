"""Datasets and base models by name: `conf/{datasets,models}/*.yaml`, or the user's own file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.core.errors import UserError
from pipeline.core.redaction import has_login
from pipeline.core.settings import NEUTRAL, Section, build, hashed, nearest, not_hashed, read_yaml

CONF = Path(__file__).parents[1] / "conf"
MAX_SAFETENSORS_HEADER_BYTES = 100_000_000  # limit of the format
# may share their weight, which then has another name
OUTPUT_HEAD_MODULES = ("lm_head", "embed_out")
# OPT's embedding of positions is given a mask, not ids, and an adapter would take that for ids
NOT_ADAPTABLE_MODULES = {"embed_positions"}
ADAPTER_FILE = "adapter_config.json"
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len")
OWN_FILE_SUFFIXES = (".yaml", ".yml")
SOURCE_FIELDS = ("urls", "years", "sha256", "revision", "subset", "split", "max_bytes")
SHA256 = r"^[0-9a-f]{64}$"
YEARS = r"^[0-9]{4}(-[0-9]{4})?$"


class Dataset(Section):
    """A corpus: where it comes from and how its records are read.

    `urls` are mirrors of the same file, tried in order. `https://`, `http://`, `file://` name a
    file, `hf://owner/name` a hub dataset, `docstrings://a,b` the docstrings of installed packages,
    of which `max_bytes` are taken at most. A `file://` may name a folder, taken as a whole. With
    `years` (`2020` or `1985-2024`) there is one file a year, and `{year}` stands for it in the
    URLs. `form`: how the files hold records, see `pipeline.sources.formats`. `delimiter`,
    `quoting`, `columns`: of CSV and TSV files, see `pipeline.sources.csv_dialect`; `columns` names
    those of files without a header. `sha256` (hex), `size`
    (bytes): of the one file. `revision`, `subset`, `split`: of a hub dataset. `text_field`,
    `id_field`: the fields with text and id. `split_by`: the field that decides the split instead of
    the text. `language`: its ISO 639 code. `instead`: the id that the error message suggests if no
    mirror answers. `model`, `recipe`: the defaults for this dataset.
    """

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    urls: list[str] = Field(min_length=1)
    years: str | None = hashed(None, neutral=None, pattern=YEARS)
    form: Literal[
        "auto", "jsonl", "csv", "tsv", "parquet", "text", "nih-exporter", "courtlistener"
    ] = hashed("auto", neutral="auto")
    delimiter: Literal["auto", "comma", "semicolon", "tab", "pipe"] = hashed("auto", neutral="auto")
    quoting: Literal["auto", "double", "none"] = hashed("auto", neutral="auto")
    columns: tuple[str, ...] | None = hashed(None, neutral=None)
    sha256: str | None = hashed(None, neutral=None, pattern=SHA256)
    size: int | None = not_hashed(None, ge=0)
    revision: str | None = hashed(None, neutral=None)
    subset: str | None = hashed(None, neutral=None)
    split: str = hashed("train", neutral="train")
    max_bytes: int | None = hashed(None, neutral=None, ge=1000)
    text_field: str = hashed("text", neutral="text")
    id_field: str | None = hashed(None, neutral=None)
    split_by: str | None = hashed(None, neutral=None)
    licence: str = not_hashed("")
    language: str | None = not_hashed(None)
    about: str = not_hashed("")
    instead: str | None = not_hashed(None)
    model: str | None = not_hashed(None)
    recipe: str | None = not_hashed(None)

    @field_validator("urls")
    @classmethod
    def _known_scheme(cls, urls: list[str]) -> list[str]:
        for url in urls:
            if not re.match(r"(https?|file|hf|docstrings)://", url):
                raise ValueError(
                    f"{url!r} must start with https://, http://, file://, hf:// or docstrings://"
                )
            if has_login(url):
                raise ValueError(
                    f"{url}: a name or password in a URL would be shown; ~/.netrc is the place "
                    "for it, as: machine HOST login NAME password PASSWORD"
                )
        return urls

    @field_validator("years", mode="before")
    @classmethod
    def _one_year_is_a_number_in_yaml(cls, years: Any) -> Any:
        return str(years) if type(years) is int else years

    @field_validator("years")
    @classmethod
    def _in_order(cls, years: str | None) -> str | None:
        if years and years[:4] > years[-4:]:
            raise ValueError("the first year comes after the last")
        return years

    @model_validator(mode="after")
    def _years_fit(self) -> Dataset:
        holds = {bool(re.match(r"(https?|file)://.*\{year\}", url)) for url in self.urls}
        if holds != {self.years is not None}:
            raise ValueError(
                f"years={self.years} with urls={self.urls}: where years is given, every URL is "
                "https://, http:// or file:// with {year} in it, and where it is not, none is"
            )
        if self.years and (self.sha256 or self.size is not None):
            raise ValueError(f"years={self.years}: sha256 and size name one file, years several")
        return self

    @property
    def files(self) -> dict[str, list[str]]:
        """The mirrors of each file of the corpus: by year, in order, or of the one `corpus`."""
        if self.years is None:
            return {"corpus": self.urls}
        span = range(int(self.years[:4]), int(self.years[-4:]) + 1)
        return {f"{year}": [url.replace("{year}", f"{year}") for url in self.urls] for year in span}

    def hashed_values(self) -> dict[str, Any]:
        """As for any section, with the content in place of where it comes from."""
        fields = super().hashed_values().items()
        return {k: v for k, v in fields if k not in SOURCE_FIELDS} | {"content": self.content}

    @property
    def content(self) -> dict[str, Any]:
        """Identity of the source, not the content itself; the name is part of recipe keys.

        The hash if it is known, else the source fields that are not neutral.
        """
        if self.sha256:
            return {"sha256": self.sha256}
        return _not_neutral(self, SOURCE_FIELDS)


class BaseModel(Section):
    """A causal language model and its tokenizer, at a pinned revision.

    Exactly one source: `repo` (hub), `path` (a local folder in HF form), or `package` with `gguf`
    (weights that a Python package ships). `context`: tokens it can see; `modules`: last names of
    those that adapters may go into; both where they are known before it is there.
    """

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    repo: str | None = hashed(None, neutral=None)
    revision: str | None = hashed(None, neutral=None)
    path: str | None = hashed(None, neutral=None)
    package: str | None = hashed(None, neutral=None)
    gguf: str | None = hashed(None, neutral=None)
    prefix_token: str | None = hashed(None, neutral=None)
    end_token: str | None = hashed(None, neutral=None)
    parameters: int | None = not_hashed(None)
    context: int | None = not_hashed(None, ge=1)
    modules: tuple[str, ...] = not_hashed(())
    about: str = not_hashed("")

    @model_validator(mode="after")
    def _one_source(self) -> BaseModel:
        if [self.repo, self.path, self.package].count(None) != 2:
            raise ValueError("name exactly one of repo, path, package")
        if bool(self.package) != bool(self.gguf):
            raise ValueError("package and gguf go together")
        return self

    @property
    def content(self) -> dict[str, Any]:
        """What identifies the weights and the tokenizer."""
        return _not_neutral(self, ("repo", "revision", "path", "package", "gguf"))


def _not_neutral(section: Section, names: tuple[str, ...]) -> dict[str, Any]:
    parts = {name: section.key_part(name) for name in names}
    return {name: value for name, value in parts.items() if value is not NEUTRAL}


Kind = Literal["datasets", "models", "recipes"]


def ids(kind: Kind) -> list[str]:
    """The registered names of a kind, sorted."""
    return sorted(path.stem for path in (CONF / kind).glob("*.yaml"))


def entry(kind: Kind, name: str) -> dict[str, Any]:
    """The values of a registered name, or of a YAML file given by path."""
    path = Path(name).expanduser()
    if path.suffix in OWN_FILE_SUFFIXES:
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        return {"id": path.stem, **read_yaml(path)}
    if name not in ids(kind):
        raise UserError(f"unknown {kind[:-1]} {name!r}; {nearest(name, ids(kind))}")
    return {"id": name, **read_yaml(CONF / kind / f"{name}.yaml")}


def find_dataset(name: str, file: str | None = None) -> Dataset:
    """The dataset of that name; `file`, a file or a folder, takes the place of all its files."""
    dataset: Dataset = build(Dataset, entry("datasets", name), f"dataset {name}")
    if file is None:
        return dataset
    path = Path(file).expanduser().resolve()
    if not path.exists():
        raise UserError(f"FILE={file}: there is no such file")
    local = {"urls": [path.as_uri()], "years": None}
    # of several files the hash is not that of the one that is published
    return dataset.model_copy(
        update=local | ({"sha256": None, "size": None} if path.is_dir() else {})
    )


def find_model(name: str) -> BaseModel:
    """The model of that name, a local folder in HF form, or a hub repo id `owner/name`."""
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        safe = re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().name).strip("-.") or "model"
        values: dict[str, Any] = {
            "id": safe,
            "path": str(path.resolve()),
            "context": _context(path),
            "modules": _modules(path),
        }
    elif (path / ADAPTER_FILE).is_file():
        raise adapter_error(name)
    elif name.startswith(("/", ".", "~")) and path.suffix not in OWN_FILE_SUFFIXES:
        if adapter := next(path.glob(f"*/{ADAPTER_FILE}"), None):
            raise adapter_error(str(adapter.parent))
        raise UserError(f"MODEL={name}: there is no such folder with a config.json")
    elif (
        name not in ids("models")
        and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", name)
        and path.suffix not in OWN_FILE_SUFFIXES
    ):
        repo, _, revision = name.partition("@")
        values = {"id": repo.replace("/", "--"), "repo": repo, "revision": revision or "main"}
    else:
        values = entry("models", name)
    model: BaseModel = build(BaseModel, values, f"model {name}")
    return model


def adapter_error(name: str) -> UserError:
    """The error for an adapter where a model is expected."""
    return UserError(
        f"MODEL: {name} is a PEFT adapter, not a whole model",
        "Merge it into its base model, by make export if a run made it, else by peft's "
        "merge_and_unload() and save_pretrained(), and give the folder of the result",
    )


def _context(folder: Path) -> int | None:
    """The context of a local model in tokens, from its config.json."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    lengths = (content.get(n) for n in CONTEXT_NAMES) if isinstance(content, dict) else ()
    return next((value for value in lengths if isinstance(value, int) and value > 0), None)


def _modules(folder: Path) -> list[str]:
    """Last names of the modules of a local model that hold matrices; none if unknown."""
    modules: set[str] = set()
    for path in folder.glob("model*.safetensors"):
        try:
            with path.open("rb") as file:  # the safetensors library would import numpy
                size = min(int.from_bytes(file.read(8), "little"), MAX_SAFETENSORS_HEADER_BYTES)
                tensors = json.loads(file.read(size))
            tensors.pop("__metadata__", None)
            names = [
                name.split(".") for name, tensor in tensors.items() if len(tensor["shape"]) == 2
            ]
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return []
        modules |= {name[-2] for name in names if len(name) > 1 and name[-1] == "weight"}
    return sorted({*modules - NOT_ADAPTABLE_MODULES, *OUTPUT_HEAD_MODULES}) if modules else []
