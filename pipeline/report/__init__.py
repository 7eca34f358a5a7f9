"""The report of a run: pages for people, and `report.json` for programs."""

SECTIONS = ("dataset", "model", "decompress", "tokenize", "train", "evaluate")
"""The sections of a configuration that decide results."""
PARTIAL_REPORT = "report-so-far"
"""Folder of the report of a run that is not finished; it lies beside the folder `report`."""
