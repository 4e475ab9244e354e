"""The end-to-end channel between two peers (protocol.md section 4)."""
