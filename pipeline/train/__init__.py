"""The train stage: the loop, its checkpoints, and the guards around it."""
