"""Accounts of users: registration, login, tokens."""
