"""Files of settings: ``NAME=value`` lines, or TOML where the name of the file ends in ``.toml``.

Both give the texts that environment variables would have, so a value is judged in one place.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from wavry_peer.protocol.errors import LocalError

__all__ = ["SettingsError", "nearest", "read_settings_file", "short_name"]

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ESCAPED: Final = re.compile(r"\\(.)")
_FILE_LIMIT_BYTES: Final = 65_536
"""Every setting of a role with a comment for each is a tenth of it."""
_ROLE: Final = re.compile(r"WAVRY_((GATEWAY|MASTER|RELAY)_)?")


class SettingsError(LocalError):
    """One or more settings do not fit; the message has one line for each."""


def short_name(variable: str) -> str:
    """Return a setting's name in a TOML file, e.g. ``listen`` for ``WAVRY_GATEWAY_LISTEN``."""
    return _ROLE.sub("", variable, count=1).lower()


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is probably meant, empty where none is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.8)), "")


def read_settings_file(
    path: Path, is_known: Callable[[str], bool], short: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Read the settings of a file by their variables; `load_layers` describes the two forms.

    Args:
        path: of a regular file.
        is_known: whether a setting of this variable may be in it.
        short: variables by the short names that a TOML file may have for them.

    Raises:
        SettingsError: the file cannot be read, or a line of it does not fit.
    """
    text = _text_of(path)
    short = short or {}
    if path.suffix == ".toml":
        found, faults = _from_toml(text, lambda name: short.get(name, name))
    else:
        found, faults = _from_lines(text)
    values = {}
    for place, name, value in found:
        if is_known(name):
            values[name] = value
        else:
            # All that `short` names is known; of a predicate there is nothing to choose from.
            meant = nearest(name, {*short, *short.values()})
            hint = f"; is {meant} meant?" if meant else ""
            faults.append((place, f"{name} is not a setting that this file may have{hint}"))
    if faults:
        raise SettingsError(
            "\n".join(f"settings file {path}{place}: {fault}" for place, fault in faults)
        )
    return values


_Found = list[tuple[str, str, str]]
"""Place in the file, name, text."""
_Faults = list[tuple[str, str]]


def _text_of(path: Path) -> str:
    try:
        if not path.is_file():  # A pipe would never end, and the role would wait for it.
            raise SettingsError(f"settings file {path} is not there, or is no regular file")
        with path.open("rb") as file:
            raw = file.read(_FILE_LIMIT_BYTES + 1)
        text = raw.decode()
    except OSError as error:
        raise SettingsError(f"settings file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise SettingsError(f"settings file {path} is not UTF-8 text") from None
    if len(raw) > _FILE_LIMIT_BYTES:
        raise SettingsError(f"settings file {path} has more than {_FILE_LIMIT_BYTES} bytes")
    return text


def _from_toml(text: str, variable: Callable[[str], str]) -> tuple[_Found, _Faults]:
    found: _Found = []
    faults: _Faults = []
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # Its message names line and column; of what stands there, one character at most.
        return [], [("", f"is not TOML: {error}")]
    for name, value in table.items():
        try:
            found.append(("", variable(name), _toml_text(value)))
        except ValueError as error:
            faults.append(("", f"{name} {error}"))
    return found, faults


def _toml_text(value: Any) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    raise ValueError("must be a text, a number, true, false or a list of texts")


def _from_lines(text: str) -> tuple[_Found, _Faults]:
    found: _Found = []
    faults: _Faults = []
    for number, line in enumerate(text.splitlines(), 1):
        content = line.strip()
        if not content or content[0] in "#;":
            continue
        place = f", line {number}"
        try:
            found.append((place, *_parse_line(content)))
        except ValueError as error:
            faults.append((place, str(error)))
    return found, faults


def _parse_line(line: str) -> tuple[str, str]:
    name, equals, value = line.partition("=")
    name, value = name.strip(), value.strip()
    if not equals or not _VARIABLE.fullmatch(name):
        # What stands there may be half a secret: it is not quoted.
        raise ValueError("must be NAME=value or a comment")
    if value.endswith("\\") and not value.endswith("\\\\"):
        raise ValueError(f"{name} must stand on one line")
    if value[:1] in ("'", '"'):
        if len(value) < 2 or value[-1] != value[0]:
            raise ValueError(f"{name} has a quote that does not end")
        quoted = value[1:-1]
        return name, _ESCAPED.sub(r"\1", quoted) if value[0] == '"' else quoted
    return name, value
