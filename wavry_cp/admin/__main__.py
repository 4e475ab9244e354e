"""``python -m wavry_cp.admin`` is ``wavryctl``."""

from wavry_cp.admin.commands.app import main

main()
