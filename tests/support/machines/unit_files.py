"""The shipped unit files, read as systemd reads them as far as tests need it."""

import re
from dataclasses import dataclass
from pathlib import Path

from support.paths import REPOSITORY

EXAMPLES = REPOSITORY / "systemd-examples"
SERVICES = sorted(EXAMPLES.glob("*.service"))
UNITS = [*SERVICES, *sorted(EXAMPLES.glob("*.socket"))]
_SECONDS = {"": 1.0, "s": 1.0, "ms": 0.001, "min": 60.0}


@dataclass(frozen=True)
class Unit:
    """Lines of a unit file.

    Attributes:
        name: e.g. ``wavry-relay.service``.
        lines: section, key and value.
    """

    name: str
    lines: tuple[tuple[str, str, str], ...]

    @classmethod
    def read(cls, path: Path) -> "Unit":
        section, lines = "", []
        for line in path.read_text().splitlines():
            if line.startswith("["):
                section = line.strip("[]")
            elif line and line[0] not in "#;":
                key, _, value = line.partition("=")
                lines.append((section, key, value))
        return cls(path.name, tuple(lines))

    def all(self, key: str) -> list[str]:
        """Every value of a key."""
        return [value for _, name, value in self.lines if name == key]

    def one(self, key: str) -> str:
        """The only value of a key."""
        (value,) = self.all(key)
        return value

    def seconds(self, key: str) -> float:
        match = re.fullmatch(r"(\d+)([a-z]*)", self.one(key))
        assert match is not None
        return int(match[1]) * _SECONDS[match[2]]

    def environment(self, **specifiers: str) -> dict[str, str]:
        """What ``Environment=`` sets, with specifiers (``d="/run/…"``) put in."""
        pairs = dict(value.split("=", 1) for value in self.all("Environment"))
        return {name: expanded(value, specifiers) for name, value in pairs.items()}

    @property
    def credentials(self) -> dict[str, str]:
        """Name and source of each credential."""
        return dict(value.split(":", 1) for value in self.all("LoadCredential"))

    @property
    def commands(self) -> list[list[str]]:
        """Words of each command that the unit runs."""
        return [value.split() for key in ("ExecStart", "ExecReload") for value in self.all(key)]


def expanded(text: str, specifiers: dict[str, str]) -> str:
    for letter, value in specifiers.items():
        text = text.replace(f"%{letter}", value)
    assert not re.search(r"%[A-Za-z]", text), f"unknown specifier in {text}"
    return text


def assignments(path: Path) -> dict[str, str]:
    """``NAME=value`` lines of an environment file."""
    lines = path.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and line[0] not in "#;")
