"""The documents agree with the code: links, tests, settings, paths and commands exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from jobs.cluster.profile import Profile, Resources
from pipeline.config import ALL_SECTIONS, Config
from pipeline.core.settings import parse_overrides
from pipeline.dag import STEPS

ROOT = Path(__file__).resolve().parent.parent
DOCS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCS += sorted((ROOT / "docs").glob("*.md"))
README_MAX_WORDS = 1400
SECTIONS: dict[str, type[BaseModel]] = {
    name: annotation
    for name in ALL_SECTIONS
    if isinstance(annotation := Config.model_fields[name].annotation, type)
}
FORMER_NAMES = "## Former names"
STEP_NAMES = {step.name for step in STEPS}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def without_code_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code_blocks(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def tables(text: str) -> Iterator[list[list[str]]]:
    """The tables of a page, as rows of cells, without the line below the header."""
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        yield [
            [cell.strip() for cell in row] for row in rows if not set("".join(row)) <= set("-: ")
        ]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def section_of_page(text: str, heading: str) -> str:
    return re.split(rf"^{re.escape(heading)}$", text, flags=re.MULTILINE)[1].split("\n## ")[0]


def plain(value: Any) -> Any:
    """A default as YAML has it."""
    return [plain(each) for each in value] if isinstance(value, tuple | list) else value


@pytest.mark.parametrize(("name", "least"), [("inputs", 50), ("training", 25)])
def test_every_test_that_a_document_names_exists(name: str, least: int) -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / f"{name}.md").read_text()))
    there = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > least
    assert named <= set(re.findall(r"^def (test_\w+)", there, re.MULTILINE))


@pytest.mark.parametrize("path", DOCS, ids=relative)
def test_every_relative_link_resolves(path: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code_blocks(path.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_linked_from_readme() -> None:
    links = set(re.findall(r"\]\(([^)#\s]+)\)", (ROOT / "README.md").read_text()))
    assert {relative(path) for path in DOCS} - links == {"README.md"}


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= README_MAX_WORDS


@pytest.mark.parametrize("path", DOCS, ids=relative)
def test_every_setting_that_a_document_names_exists(path: Path) -> None:
    text = path.read_text().split(FORMER_NAMES)[0]
    pattern = rf"(?<![\w./])({'|'.join(SECTIONS)})\.(\w+)\b(?!\.\w|/|\()"
    unknown = [
        f"{section}.{field}"
        for section, field in re.findall(pattern, text)
        if field not in SECTIONS[section].model_fields
        and f"{section}.{field}" not in STEP_NAMES
        and field not in ("sbatch", "md", "html", "py", "yaml")
    ]
    assert not unknown


@pytest.mark.parametrize("section", SECTIONS)
def test_the_table_of_a_section_lists_its_settings_and_defaults(section: str) -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    (table,) = tables(section_of_page(text, f"## {section}"))
    header, *rows = table
    assert header == ["name", "default", "meaning", "changes results"]
    fields = SECTIONS[section].model_fields
    assert [names(name) for name, *_ in rows] == [[name] for name in fields]
    for (name, default, meaning, changes), field in zip(rows, fields.values(), strict=True):
        if field.default is PydanticUndefined:
            assert default == "required", name
        else:
            (word,) = names(default)
            assert parse_overrides([f"a.b={word}"])["a"]["b"] == plain(field.default), name
        assert meaning, name
        extra = field.json_schema_extra
        is_free = isinstance(extra, dict) and extra.get("hashed") is False
        assert changes.split(",")[0] == ("no" if is_free else "yes"), name


def test_former_names_are_gone_and_their_new_names_exist() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    (table,) = tables(section_of_page(text, FORMER_NAMES))
    documented = {names(former)[0]: names(new) for former, new in table[1:]}
    refused = yaml.safe_load((ROOT / "pipeline" / "conf" / "former_settings.yaml").read_text())
    assert documented == {k: re.findall(r"\w+\.\w+(?!=|\w)", v) for k, v in refused.items()}
    for former in documented:
        section, _, field = former.partition(".")
        assert field not in SECTIONS[section].model_fields
    for new in (name for each in documented.values() for name in each):
        section, _, field = new.partition(".")
        assert field in SECTIONS[section].model_fields


def test_the_tables_of_profiles_list_their_fields() -> None:
    text = section_of_page((ROOT / "docs" / "clusters.md").read_text(), "## Profiles")
    profile, resources = (
        {name for first, *_ in table[1:] for name in names(first)} for table in tables(text)
    )
    assert profile == {*Profile.model_fields, "extends"}
    assert resources == set(Resources.model_fields)


@pytest.mark.parametrize("path", DOCS, ids=relative)
def test_every_path_and_module_that_a_document_names_exists(path: Path) -> None:
    text = path.read_text()
    folders = "pipeline|jobs|tests|bench|env|slurm|docs"
    named = set(re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./-]+\w)", text))
    named |= {f"{m.replace('.', '/')}.py" for m in re.findall(r"-m (bench\.\w+)", text)}
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


@pytest.mark.parametrize("path", DOCS, ids=relative)
def test_every_make_target_that_a_document_names_exists(path: Path) -> None:
    (phony,) = re.findall(
        r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text().replace("\\\n", ""), re.MULTILINE
    )
    named = re.findall(r"(?:`|^    )make ([a-z][a-z-]*)", path.read_text(), re.MULTILINE)
    assert set(named) <= set(phony.split())


def test_every_name_in_the_instructions_to_contributors_exists() -> None:
    text = section_of_page((ROOT / "CONTRIBUTING.md").read_text(), "## How to add …")
    named = set(re.findall(r"`(\w+)(?:\(…\))?`", text))
    code = "\n".join(path.read_text() for path in (ROOT / "pipeline").rglob("*.py"))
    assert {"STEPS", "READERS"} <= named
    assert named <= set(re.findall(r"\w+", code))
