"""What the log files of a run say: attempts, times, costs, progress."""
