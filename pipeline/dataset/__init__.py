"""What training and evaluation read: sealed shards, token cache, packing, sample order."""
