"""Support of tests: engine."""
