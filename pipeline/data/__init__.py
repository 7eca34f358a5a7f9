"""The data's way: records, encoder, shards, packing, order."""
