"""The model's way: source, loading, loss, loop, checkpoints, scoring."""
