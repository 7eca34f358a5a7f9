"""Search for held-out text in the training split."""
