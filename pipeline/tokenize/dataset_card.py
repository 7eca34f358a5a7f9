"""The README beside sealed shards, which lets `datasets.load_dataset` open the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.core.atomic_io import write_text
from pipeline.tokenize.shards import SPLITS


def write_card(folder: Path, content: dict[str, Any]) -> None:
    """Write the README with which `datasets.load_dataset` opens what is sealed in the folder."""
    path, card = folder / "README.md", _card(folder.name, content)
    if not path.exists() or path.read_text(encoding="utf-8") != card:
        write_text(path, card)


def _card(title: str, content: dict[str, Any]) -> str:
    # by name: shards of a corpus that was another one may stand beside them
    files = "\n".join(
        f"  - split: {split}\n    path:\n"
        + "\n".join(f"    - {shard}/{split}.parquet" for shard in content["shards"])
        for split in SPLITS
    )
    counts = "\n".join(
        f"| {split} | {total['documents']:,} | {total['tokens']:,} |"
        for split, total in content["splits"].items()
    )
    return (
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}\n---\n# {title}\n\n"
        "`datasets.load_dataset(<this folder>)` opens it. Rows hold `input_ids`, nothing added.\n"
        f"Encoded by {content['encoder']}. Without duplicates:\n\n"
        f"| split | documents | tokens |\n|---|---|---|\n{counts}\n"
    )
