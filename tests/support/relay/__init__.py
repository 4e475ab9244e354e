"""Support of tests: relay."""
