"""What all packages of jobs use: printed lines, folder permissions, the environment of a task."""
