"""Shared by all stages: receipts, leases, settings, errors, atomic files."""
