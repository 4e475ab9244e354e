"""Whether relays do what they say: the master's own sessions, what heartbeats show, and when."""
