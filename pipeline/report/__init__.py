"""What a run came to, for people and for machines."""

SECTIONS = ("dataset", "model", "decompress", "tokenize", "train", "evaluate")
SO_FAR = "report-so-far"
"""Beside the folder of a run's report: the page of a run that is not finished."""
