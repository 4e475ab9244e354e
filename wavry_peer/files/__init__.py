"""File transfer over a datagram session."""
