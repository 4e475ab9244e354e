"""What operators and monitors ask of a relay."""
