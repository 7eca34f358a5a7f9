"""What a run came to, for people and for machines."""

SECTIONS = ("dataset", "model", "decompress", "tokenize", "train", "evaluate")
