"""The wall clock of one service, which a run can step; see native/clock_offset.c."""

import mmap
from pathlib import Path
from typing import Final

from loadtest.native_build import compile_program

__all__ = ["SteppedClock"]

_OFFSET_BYTES: Final = 8


class SteppedClock:
    """An offset to the wall clock of whoever is started with `environment`.

    Args:
        path: of the file that holds it.

    Raises:
        CompileError: no C compiler.
    """

    def __init__(self, path: Path) -> None:
        library = compile_program("clock_offset", library=True)
        path.write_bytes(bytes(_OFFSET_BYTES))
        path.chmod(0o644)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _OFFSET_BYTES)
        self._words = memoryview(self._map).cast("q")
        self.environment = {"LD_PRELOAD": str(library), "CHAOS_CLOCK_FILE": str(path)}

    def step(self, offset_s: int) -> None:
        """Set the offset to the true time."""
        self._words[0] = offset_s * 1_000_000_000

    def close(self) -> None:
        """Give the mapping back."""
        self._words.release()
        self._map.close()
