"""Running a plan, in SLURM jobs or in the foreground, and the tasks of it."""
