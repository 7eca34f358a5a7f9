"""Running tasks: in a job, by hand, or in the foreground."""
