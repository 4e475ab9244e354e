"""The control plane: gateway (users meet), master (relays and leases) and the admin command."""
