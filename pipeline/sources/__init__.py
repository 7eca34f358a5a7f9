"""From bytes to records: compression, zstd frames, file formats, CSV, lines."""
