"""wavryctl: formats what the services answer; the rules live in the services."""
