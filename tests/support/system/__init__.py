"""Support of tests: system."""
