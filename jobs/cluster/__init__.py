"""The only package that calls SLURM."""
