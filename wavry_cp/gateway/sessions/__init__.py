"""Sessions between two users and the relay leases of each."""
