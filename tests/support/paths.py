"""Where the project lies; tests that start programs or read files of the tree begin here."""

from pathlib import Path
from typing import Final

__all__ = ["REPOSITORY", "TESTS"]

TESTS: Final = Path(__file__).resolve().parents[1]
REPOSITORY: Final = TESTS.parent
