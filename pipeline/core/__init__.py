"""What every stage stands on: receipts, leases, settings, errors, and the files they live in."""
