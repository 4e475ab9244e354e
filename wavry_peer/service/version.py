"""The version that this program is."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["software_version"]


def software_version() -> str:
    """Version of the installed distribution; ``"0+source"`` when run from a tree."""
    try:
        return version("wavry")
    except PackageNotFoundError:
        return "0+source"
