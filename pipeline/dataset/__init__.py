"""Data for training and evaluation: sealed shards, token cache, packing, sample order."""
