"""Storage behind typed interfaces: no SQL lives outside this package."""
