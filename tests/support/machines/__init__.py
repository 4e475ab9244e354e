"""Support of tests: machines."""
