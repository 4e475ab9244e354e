"""The signaling WebSocket of each client."""
