"""What every package of jobs uses: printed lines, permissions, the environment of a task."""
