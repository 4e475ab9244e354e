"""Commands that every service has: `health` and `config`."""
