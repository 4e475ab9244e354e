"""Entry points of the commands: they name the extra that is missing instead of a traceback."""

import importlib
import sys

__all__ = ["gateway", "master", "wavryctl"]


def _launch(module: str) -> None:
    try:
        cli = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0].startswith("wavry"):
            raise
        sys.exit(f"the package {error.name} is missing: install the extra with "
                 "`pip install 'wavry[cp]'`")  # fmt: skip
    cli.main()


def gateway() -> None:
    """Run ``wavry-gateway``."""
    _launch("wavry_cp.gateway.cli")


def master() -> None:
    """Run ``wavry-master``."""
    _launch("wavry_cp.master.cli")


def wavryctl() -> None:
    """Run ``wavryctl``."""
    _launch("wavry_cp.admin.commands.app")
