"""Leases: issue, renew, and the choice of a relay."""
