"""Bodies of HTTP calls, event streams and signaling (protocol.md section 6)."""
