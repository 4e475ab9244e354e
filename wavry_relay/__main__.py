"""`python -m wavry_relay` is `wavry-relay`."""

from .cli import main

main()
