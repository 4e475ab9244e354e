"""Support of tests: peer."""
