"""Control packets in, answers out: every rule that decides about a lease."""
