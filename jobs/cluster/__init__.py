"""What is known of a cluster: SLURM's commands, a process's allocation, the site's profile."""
