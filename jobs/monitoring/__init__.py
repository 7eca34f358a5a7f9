"""Looking at runs: progress, status, logs, reports on request."""
