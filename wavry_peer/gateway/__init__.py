"""The client of a gateway: HTTP, signaling, calls."""
