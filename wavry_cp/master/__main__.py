"""``python -m wavry_cp.master``."""

from .cli import main

main()
