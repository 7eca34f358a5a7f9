"""Validated settings: the base of every config section, and messages about mistakes in one.

Sections are defined beside the code that uses them; `pipeline.config` puts them together. A field
that cannot change a result (paths, workers, retries) is declared with `not_hashed(...)` and is no
part of a recipe key.
"""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import MethodType
from typing import Any, ClassVar, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.errors import UserError

M = TypeVar("M", bound=BaseModel)
FORMER_NAMES = Path(__file__).parents[1] / "conf" / "former_settings.yaml"


class Section(BaseModel):
    """A group of settings: frozen, strict about names and types.

    Every field says whether it is part of a recipe key: `hashed(...)` with its neutral value, or
    `not_hashed(...)`. A field without a default is always part of it.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    def hashed_values(self) -> dict[str, Any]:
        """The fields that decide the bytes of a result, as plain data."""
        return self.model_dump(mode="json", exclude=self.not_hashed_fields())

    @classmethod
    def not_hashed_fields(cls) -> set[str]:
        """The fields that cannot change a result."""
        return {name for name, facts in _declared(cls) if facts.get("hashed") is False}

    def key_part(self, name: str) -> Any:
        """What a field adds to a recipe key: its value, or `NEUTRAL` if it adds nothing."""
        return _key_part(type(self), name, self.model_dump(mode="json", include={name})[name])


NEUTRAL = object()
"""Stands for a field whose value does not enter a recipe key."""


def hashed(default: Any, *, neutral: Any, table: int = 1, **kwargs: Any) -> Any:
    """A pydantic field that decides results, so it is part of the recipe keys of its steps.

    Args:
        default: The value if the user gives none. A release may change it.
        neutral: The value that leaves keys as they were before the field existed, and reproduces
            what was computed then. It is chosen when the field is introduced and never changed.
        table: Version of the table that turns the value `auto` into a number. Increase it whenever
            the table changes.
        kwargs: Passed on to `pydantic.Field`.
    """
    facts = {"hashed": True, "neutral": neutral, "table": table}
    return Field(default, json_schema_extra=facts, **kwargs)


def not_hashed(default: Any, **kwargs: Any) -> Any:
    """A pydantic field that cannot change a result, so it is not part of a recipe key."""
    return Field(default, json_schema_extra={"hashed": False}, **kwargs)


def neutral_values(section: type[Section]) -> dict[str, Any]:
    """The neutral value of each field of a section that has one, as plain data."""
    return {n: facts["neutral"] for n, facts in _declared(section) if "neutral" in facts}


def _declared(section: type[Section]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in section.model_fields.items():
        extra = field.json_schema_extra
        yield name, extra if isinstance(extra, dict) else {}


def _key_part(section: type[Section], name: str, value: Any) -> Any:
    facts = dict(_declared(section))[name]
    if "neutral" not in facts:
        return value
    if value == "auto" and facts["table"] > 1:
        return f"auto@{facts['table']}"
    return NEUTRAL if value == facts["neutral"] else value


def lookup(config: Any, path: str) -> Any:
    """The value at a dotted path of a config."""
    for name in path.split("."):
        config = getattr(config, name)
    return config


def key_parts(config: Any, paths: Iterable[str]) -> dict[str, Any]:
    """What the settings at these dotted paths add to a recipe key, without neutral values."""
    parts = {}
    for path in paths:
        section_name, _, name = path.partition(".")
        section: Section = getattr(config, section_name)
        is_field = name in type(section).model_fields
        parts[path] = section.key_part(name) if is_field else getattr(section, name)
    return {path: value for path, value in parts.items() if value is not NEUTRAL}


class ConfigView:
    """A config from which only declared settings can be read; any other raises `LookupError`.

    Args:
        node: The config, or a section of it.
        declared: Dotted paths of the settings that may be read.
        owner: Who declared them, for the error.
        path: Where in the config `node` is.
    """

    def __init__(self, node: Any, declared: tuple[str, ...], owner: str, path: str = "") -> None:
        self._node, self._declared, self._owner, self._path = node, declared, owner, path

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)  # as copy and pickle expect
        path = f"{self._path}.{name}".lstrip(".")
        value = getattr(self._node, name)
        if isinstance(value, MethodType) and not hasattr(Section, name):
            return MethodType(value.__func__, self)  # a method, too, reads only what is declared
        if any(path == d or path.startswith(d + ".") for d in self._declared):
            return value
        if any(d.startswith(path + ".") for d in self._declared):
            return ConfigView(value, self._declared, self._owner, path)
        raise LookupError(f"step {self._owner} reads the setting {path}, which it does not declare")


def parse_overrides(overrides: list[str]) -> dict[str, Any]:
    """Turn `["train.lr=3e-4"]` into `{"train": {"lr": 0.0003}}`.

    Values are YAML as in `read_yaml`, except that 3e-4 is a number.
    """
    tree: dict[str, Any] = {}
    for word in overrides:
        path, equals, text = word.partition("=")
        if not equals or not all(path.split(".")):
            raise UserError(
                f"cannot read {word!r}", "Write it as section.field=value, e.g. train.lr=3e-4"
            )
        try:
            value = yaml.load(text, Loader=_Loader) if text else None
        except yaml.YAMLError as error:
            raise UserError(f"the value of {path} is not YAML: {text!r}") from error
        *sections, field = path.split(".")
        node = tree
        for name in sections:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise UserError(f"{word!r} goes into {name}, which another word sets to {node!r}")
        node[field] = value if text.startswith(("'", '"')) else _number(value)
    return tree


def _number(value: Any) -> Any:
    """Read 3e-4 as a number; YAML 1.1 reads it as a string."""
    if isinstance(value, str) and any(c in value for c in "eE."):
        with contextlib.suppress(ValueError):
            number = float(value)
            # such as the commit id 12e4567, which overflows to infinity
            return number if math.isfinite(number) else value
    return value


def merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """`base` updated with `overrides`, section by section; neither argument is changed."""
    result = dict(base)
    for name, value in overrides.items():
        old = result.get(name)
        result[name] = (
            merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return result


def _integer(loader: Any, node: Any) -> Any:
    return node.value if ":" in node.value else loader.construct_yaml_int(node)


class _Loader(yaml.SafeLoader):
    """YAML in which 1:00:00 is a string; YAML 1.1 makes it a number in base 60."""

    yaml_constructors: ClassVar[dict[Any, Any]] = {
        **yaml.SafeLoader.yaml_constructors,
        "tag:yaml.org,2002:int": _integer,
    }


def read_yaml(path: Any) -> dict[str, Any]:
    """A YAML file that must hold a mapping."""
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"cannot read {path}{where}: {what}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}, not settings as `name: value` lines")
    return value


def build(model: type[M], values: dict[str, Any], where: str) -> M:
    """Validate `values` as `model`; a mistake becomes a `UserError` with its path and rule."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        broken: dict[str, list[str]] = {}
        for each in error.errors():
            path, rule = _explain(model, each)
            broken.setdefault(path, []).append(rule)
        raise UserError(
            f"{where}: " + "; ".join(path + _either(rules) for path, rules in broken.items())
        ) from None


def nearest(word: str, words: list[str], prefix: str = "") -> str:
    """A hint that names the closest valid word, or lists them all; `prefix` stands before one."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    return f"valid names: {', '.join(sorted(words))}"


def _either(rules: list[str]) -> str:
    """Join the rules of a field: a union has one rule for each of its types."""
    return " or ".join([rules[0], *(rule.removeprefix("Input should be ") for rule in rules[1:])])


def _explain(model: type[BaseModel], error: Any) -> tuple[str, str]:
    """The given value with its path, and the rule that it breaks."""
    fields, section = _locate(model, error["loc"])
    if error["type"] == "extra_forbidden":
        name = str(error["loc"][-1])
        prefix = "".join(f"{field}." for field in fields)
        former = _former_names(prefix)
        if name in former:
            return f"the setting {prefix}{name} is now called ", former[name]
        others = [
            f"{word}.{name}" for word, inner in _sections(model) if name in inner.model_fields
        ]
        close = difflib.get_close_matches(name, [*section.model_fields, *former], n=1, cutoff=0.5)
        if prefix and close and close[0] in former:
            others.append(former[close[0]])
        hint = nearest(name, sorted(section.model_fields), prefix)
        hint = f"did you mean {' or '.join(others)}?" if others else hint
        return f"unknown setting {prefix}{name}; ", hint
    path = ".".join(fields)
    if error["type"] == "missing":
        return f"{path} is missing", ""
    rule = error["msg"].removeprefix("Value error, ")
    if error["type"] in ("tuple_type", "list_type"):
        rule = "Input should be a list such as [a,b]"
    if not path or isinstance(error["input"], dict):
        return f"{path}: " if path else "", rule
    return f"{path} = {error['input']!r}: ", rule


def _former_names(prefix: str) -> dict[str, str]:
    """The names that settings of a section had in an earlier release, each with the present one."""
    table: dict[str, str] = read_yaml(FORMER_NAMES)
    return {old.removeprefix(prefix): new for old, new in table.items() if old.startswith(prefix)}


def _sections(model: type[BaseModel]) -> list[tuple[str, type[BaseModel]]]:
    fields = [(name, field.annotation) for name, field in model.model_fields.items()]
    return [(n, a) for n, a in fields if isinstance(a, type) and issubclass(a, BaseModel)]


def _locate(model: type[BaseModel], path: tuple[Any, ...]) -> tuple[list[str], type[BaseModel]]:
    """The fields that lead to a path, without pydantic's types, and the last section."""
    fields: list[str] = []
    is_key = False
    for name in path:
        if is_key:  # of a mapping to sections
            fields.append(str(name))
            is_key = False
            continue
        if name not in model.model_fields:
            break
        fields.append(name)
        annotation = model.model_fields[name].annotation
        candidates = [annotation, *get_args(annotation)]
        sections = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not sections:
            break
        model, is_key = sections[0], get_origin(annotation) is dict
    return fields, model
