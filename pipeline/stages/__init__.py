"""The five stages; each module holds one stage's settings, steps and nothing else."""
