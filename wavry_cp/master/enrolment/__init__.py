"""Who becomes a relay: tokens, registration, and which addresses may be advertised."""
