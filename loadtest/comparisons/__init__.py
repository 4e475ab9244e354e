"""What Wavry is compared with."""
