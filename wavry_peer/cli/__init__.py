"""The command ``wavry-peer``."""
