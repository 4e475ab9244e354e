"""What a backup holds, and where it belongs on a host."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from wavry_cp.store.sqlite import gateway, master
from wavry_peer.protocol.errors import LocalError

__all__ = [
    "SERVICES",
    "Item",
    "ItemKind",
    "Manifest",
    "Places",
    "ServiceName",
    "database_file",
    "key_files",
    "newest_schema",
]

ServiceName = Literal["gateway", "master"]
ItemKind = Literal["database", "key", "service token", "admin token", "settings"]
SERVICES: Final[tuple[ServiceName, ...]] = ("gateway", "master")
KEYS_DOCUMENT: Final = "keys.json"
_KEY_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.(?:key|json)")


class Item(msgspec.Struct, frozen=True):
    """One file; `sha256` is hex."""

    kind: ItemKind
    name: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """The list at the beginning of a backup.

    Attributes:
        service: whose backup it is.
        created_at: unix seconds; every answer of the service before it is in here.
        version: of the software that made it.
        schema: number of the database's newest migration.
        database_id: of the database, the same in every copy.
        rows: rows by table.
        items: in the order of their contents.
    """

    service: ServiceName
    created_at: int
    version: str
    schema: int
    database_id: str
    rows: dict[str, int]
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Places:
    """Where the files of a service are; a part that is None was not named."""

    service: ServiceName
    data_dir: Path
    keys_dir: Path | None = None
    service_token_file: Path | None = None
    admin_token_file: Path | None = None
    settings_file: Path | None = None

    @property
    def database(self) -> Path:
        """The database file."""
        return self.data_dir / database_file(self.service)

    def of(self, item: Item) -> Path | None:
        """Return where an item belongs, or None where nobody said."""
        if item.kind == "database":
            return self.database
        if item.kind == "key":
            if _KEY_FILE.fullmatch(item.name) is None:
                raise LocalError(f"a key file cannot be named {item.name!r}")
            return None if self.keys_dir is None else self.keys_dir / item.name
        single: Mapping[ItemKind, Path | None] = {
            "service token": self.service_token_file,
            "admin token": self.admin_token_file,
            "settings": self.settings_file,
        }
        return single[item.kind]


def database_file(service: ServiceName) -> str:
    """Return the name of a service's database file."""
    return f"{service}.db"


def newest_schema(service: ServiceName) -> int:
    """Return the number of the newest migration that this version knows."""
    return len(gateway.MIGRATIONS if service == "gateway" else master.MIGRATIONS)


def key_files(directory: Path) -> Iterator[Path]:
    """Give the files of a key directory; the document, which names the others, comes last."""
    found = [path for path in directory.iterdir() if _KEY_FILE.fullmatch(path.name)]
    yield from sorted(found, key=lambda path: (path.name == KEYS_DOCUMENT, path.name))
