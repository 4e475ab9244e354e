"""A worker process: the loop around the engine and what it does between packets."""
