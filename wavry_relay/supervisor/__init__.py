"""The process that owns sockets, shared memory and workers."""
