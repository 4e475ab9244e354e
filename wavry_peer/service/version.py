"""The version that this program is."""

import functools
from importlib.metadata import PackageNotFoundError, version

__all__ = ["software_version"]


@functools.cache
def software_version() -> str:
    """Return the version of the installed distribution; ``"0+source"`` when run from a tree.

    It is read once: the package's metadata is a file to parse, which /health would feel.
    """
    try:
        return version("wavry")
    except PackageNotFoundError:
        return "0+source"
