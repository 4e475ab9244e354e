"""`python -m wavry_relay.worker`: what the supervisor starts."""

import sys

from .process import main

main(sys.argv[1:])
