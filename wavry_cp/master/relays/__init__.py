"""The relay registry: registration, heartbeats, event streams."""
