"""The sources of the native engine, listed once: whatever C and Cython lies in this folder.

`setup.py` runs this file by its path, because the package is not installed yet; so it imports
nothing but the standard library.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["digest_of", "native_sources"]


def native_sources(engine: Path) -> list[Path]:
    """Return the sources in the engine's folder, in one order; none where it is installed."""
    core = engine / "core"
    return sorted([*engine.glob("_native.p[yx][xd]"), *core.glob("*.h"), *core.glob("*.c")])


def digest_of(files: Iterable[Path]) -> str:
    """Return the hash of the files' content, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()
