"""Support of tests: protocol."""
