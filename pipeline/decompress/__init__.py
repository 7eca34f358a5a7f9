"""The decompress stage: raw files become chunks of JSON lines."""
