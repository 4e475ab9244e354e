"""The protocol core: no socket, no event loop, no clock and no randomness of its own."""
