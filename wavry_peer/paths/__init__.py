"""Ways from one peer to the other; today the one through a relay."""
