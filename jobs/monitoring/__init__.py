"""Looking at runs: progress files, status, logs, and reports on request."""
