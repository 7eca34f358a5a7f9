"""The tokenize stage: each chunk becomes Parquet shards; a seal verifies and lists them."""
