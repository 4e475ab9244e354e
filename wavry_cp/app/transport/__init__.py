"""How gateway and master may be reached: TLS of their own, and the guards of a public address."""
