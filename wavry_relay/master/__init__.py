"""What the relay holds of the master: registration, events, revocations, key ring."""
