"""Revocations: the log, who writes it, what it says."""
