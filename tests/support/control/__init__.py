"""Support of tests: control."""
