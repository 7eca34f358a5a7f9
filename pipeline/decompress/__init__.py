"""The decompress stage: raw files become JSON lines, in zstd-compressed chunks."""
