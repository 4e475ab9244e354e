"""A whole system on loopback, for development and for the demo."""
