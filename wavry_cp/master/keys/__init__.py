"""Signing keys: files, rotation, the key-set document."""
