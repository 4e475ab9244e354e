"""The gateway: accounts, signaling between two users, and the broker of their relay leases."""
