"""The stores in SQLite, the embedded default."""
