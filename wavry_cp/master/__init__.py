"""The master: knows the relays, and signs the leases that let two peers through one of them."""
