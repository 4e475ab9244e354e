"""Hosts that relays have blocked, and lifting them."""
