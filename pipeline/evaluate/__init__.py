"""The evaluate stage: scores, generated texts, memorization, contamination."""
