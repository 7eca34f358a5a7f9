"""The train stage: training loop, checkpoints, and detection of bad steps."""
