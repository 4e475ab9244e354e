"""``python -m wavry_cp.admin`` is ``wavryctl``."""

from .cli import main

main()
