"""Entry point of ``wavry-relay``: it names the extra that is missing instead of a traceback."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    try:
        from . import cli  # its imports are what may be missing
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0].startswith("wavry"):
            raise
        sys.exit(
            f"the package {error.name} is missing: install the extra with "
            "`pip install 'wavry[relay]'`"
        )
    cli.main()
