"""The version that this program is."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _installed_version

__all__ = ["version"]


def version() -> str:
    """Version of the installed distribution; ``"0+source"`` when run from a tree."""
    try:
        return _installed_version("wavry")
    except PackageNotFoundError:
        return "0+source"
