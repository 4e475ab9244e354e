"""Backups of a service: one encrypted file with its database, keys, tokens and settings."""
