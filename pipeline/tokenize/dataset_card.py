"""The dataset card: a README beside the shards, with which `datasets.load_dataset` opens them."""

from __future__ import annotations

from pathlib import Path

from pipeline.core.atomic_io import write_text
from pipeline.tokenize.facts import SPLITS, SealContent


def write_card(folder: Path, content: SealContent) -> None:
    """Write the card of the sealed shards in a folder, unless it is up to date."""
    path, card = folder / "README.md", _card(folder.name, content)
    if not path.exists() or path.read_text(encoding="utf-8") != card:
        write_text(path, card)


def _card(title: str, content: SealContent) -> str:
    # files are listed by name: the folder may also hold shards of an earlier version of the corpus
    files = "\n".join(
        f"  - split: {split}\n    path:\n"
        + "\n".join(f"    - {shard}/{split}.parquet" for shard in content["shards"])
        for split in SPLITS
    )
    counts = "\n".join(
        f"| {split} | {size['documents']:,} | {size['tokens']:,} |"
        for split, size in content["splits"].items()
    )
    return (
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}\n---\n# {title}\n\n"
        "`datasets.load_dataset(<this folder>)` opens it. Rows hold `input_ids`, without special "
        f"tokens added.\nEncoded by {content['encoder']}. Without duplicates:\n\n"
        f"| split | documents | tokens |\n|---|---|---|\n{counts}\n"
    )
