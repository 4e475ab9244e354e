"""UDP sockets of the relay: SO_REUSEPORT groups, steering, activation."""
