"""Settings from environment variables: declared once, validated once, documented from the code.

A role declares a frozen dataclass whose fields are made by `setting`; `load` reads it from the
environment and names every variable that does not fit in one error.  `load_layers` reads a file
below the environment, so that a running role can read its settings again.
`describe` gives the rows from which docs/configuration.md is generated.
"""

import dataclasses
import ipaddress
import math
import re
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from .settings_file import SettingsError, nearest, read_settings_file, short_name

__all__ = [
    "SettingRow",
    "SettingValue",
    "SettingsError",
    "describe",
    "differing",
    "is_live",
    "load",
    "load_layers",
    "load_one",
    "parse_address",
    "read_settings_file",
    "setting",
    "unknown_text",
    "unknown_variables",
    "values_of",
    "variable_of",
    "variables_of",
]

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off", ""})
_META: Final = "wavry_setting"
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
_PORT: Final = re.compile(r"[0-9]{1,5}")

_ROLES: Final = (
    "WAVRY_GATEWAY_", "WAVRY_MASTER_", "WAVRY_RELAY_", "WAVRY_PEER_",
    # Not of a running role.
    "WAVRY_BUILD_", "WAVRY_TEST_", "WAVRY_FUZZ_", "WAVRY_BENCH_",
)  # fmt: skip
_SHARED: Final = frozenset(
    {
        "WAVRY_ADMIN_TOKEN", "WAVRY_ADMIN_TOKEN_FILE", "WAVRY_ALLOW_HTTP", "WAVRY_DEV_DIR",
        "WAVRY_GATEWAY_URL", "WAVRY_LOG_LEVEL", "WAVRY_MASTER_URL", "WAVRY_PASSWORD",
        "WAVRY_ROOT_KEY_FILE", "WAVRY_SERVICE_TOKEN_FILE", "WAVRY_VERSION",
    }
)  # fmt: skip
"""Read by commands of several roles, or by docker/compose.yml."""

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True, slots=True)
class _Setting:
    variable: str
    doc: str
    unit: str
    minimum: float | None
    maximum: float | None
    live: bool


@dataclasses.dataclass(frozen=True, slots=True)
class SettingRow:
    """One row of the configuration reference."""

    variable: str
    type: str
    default: str
    unit: str
    doc: str
    live: bool = False


def setting(
    variable: str,
    default: Any = dataclasses.MISSING,
    *,
    doc: str,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    live: bool = False,
) -> Any:
    """Declare a field of a settings dataclass.

    Args:
        variable: name of the environment variable.
        default: value where the variable is not set; without it the variable is required.
        doc: one sentence for the configuration reference.
        unit: of a number.
        minimum: smallest number allowed.
        maximum: largest number allowed.
        live: whether a reload of a running role puts a new value in force.
    """
    meta = {_META: _Setting(variable, doc, unit, minimum, maximum, live)}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


def _bool(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError("must be 1 or 0")


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # "from None" here and below: the cause quotes the value.
        raise ValueError("must be a whole number") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("must be a number") from None
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # "~name" of a user that this system does not have.
        raise ValueError("must be a path whose home directory exists") from error


def _strings(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


_PARSERS: Final[dict[Any, Any]] = {
    str: str,
    int: _whole_number,
    float: _number,
    bool: _bool,
    Path: _path,
    tuple[str, ...]: _strings,
}
_EMPTY_MEANS_UNSET: Final = frozenset({str, int, float, Path})
"""``WAVRY_X=`` is how a compose file hands on a variable that nobody set; and the path of an empty
text would be the working directory.  For a flag it means off, for a list the empty list."""


def _plain_type(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    return hint


def _parse(declared: _Setting, hint: Any, text: str) -> Any:
    value = _PARSERS[_plain_type(hint)](text)
    _check_bounds(declared, value)
    return value


def _check_bounds(declared: _Setting, value: Any) -> None:
    if declared.minimum is not None and value < declared.minimum:
        raise ValueError(f"must be at least {declared.minimum:g}")
    if declared.maximum is not None and value > declared.maximum:
        raise ValueError(f"must be at most {declared.maximum:g}")


def _is_set(environ: Mapping[str, str], variable: str, hint: Any) -> bool:
    text = environ.get(variable)
    if text is None:
        return False
    return bool(text.strip()) or _plain_type(hint) not in _EMPTY_MEANS_UNSET


def load(kind: type[Config], environ: Mapping[str, str], **overrides: Any) -> Config:
    """Read a settings dataclass from environment variables.

    Args:
        kind: dataclass whose fields were made by `setting`.
        environ: usually ``os.environ``.  An empty text, number or path counts as not set.
        overrides: field values that win over the environment, within the same bounds; None is
            ignored, so that options of a command line can be passed as they are.

    Raises:
        SettingsError: names each variable that is missing or does not fit, never its value.
        TypeError: an override names no field: the caller's own mistake.
    """
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]  # kind is a dataclass by contract
    unknown = overrides.keys() - {item.name for item in fields}
    if unknown:
        raise TypeError(f"{kind.__name__} has no setting {', '.join(sorted(unknown))}")
    values: dict[str, Any] = {}
    faults = []
    for item in fields:
        declared: _Setting = item.metadata[_META]
        given = overrides.get(item.name)
        try:
            if given is not None:
                _check_bounds(declared, given)
                values[item.name] = given
            elif _is_set(environ, declared.variable, hints[item.name]):
                values[item.name] = _parse(declared, hints[item.name], environ[declared.variable])
            elif item.default is dataclasses.MISSING:
                faults.append(f"{declared.variable} must be set: {declared.doc}")
        except ValueError as error:
            faults.append(f"{declared.variable} {error}")
    if faults:
        raise SettingsError("\n".join(faults))
    return kind(**values)


def load_layers(
    kind: type[Config], environ: Mapping[str, str], *, file_field: str, **overrides: Any
) -> Config:
    """Load with a file below the environment: command line > environment > file > default.

    The file has the form of a systemd EnvironmentFile: ``NAME=value`` lines, ``#`` and ``;`` begin
    comments, quotes around a value are taken off, the last of two equal names wins.  Unlike there,
    a line cannot be continued, and a name must be one of the role's settings.  Or it is TOML
    (``*.toml``) without tables: names as there, or in short (``listen``); numbers, true and false,
    and lists of texts are written as TOML has them.

    Args:
        kind: as for `load`.
        environ: as for `load`; what is set there wins over the file.
        file_field: name of the field (a path) that names the file; unset means no file.
        overrides: as for `load`; they win over both.

    Raises:
        SettingsError: the file cannot be read, a line of it does not fit (named by its number,
            never with its value), or `load` refuses the result.
    """
    below = _from_file(kind, environ, file_field, overrides.get(file_field))
    unset = {name for name, hint in _hints_by_variable(kind).items()
             if not _is_set(environ, name, hint)}  # fmt: skip
    wins = {name: text for name, text in environ.items() if name not in unset}
    return load(kind, {**environ, **below, **wins}, **overrides)


def _hints_by_variable(kind: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {variable_of(kind, item.name): hints[item.name] for item in dataclasses.fields(kind)}


def _from_file(
    kind: type[Any], environ: Mapping[str, str], file_field: str, path: Path | None = None
) -> dict[str, str]:
    """Return what the settings file of a role says, by variables; nothing where there is none.

    Args:
        kind: as for `load`.
        environ: as for `load`.
        file_field: as for `load_layers`.
        path: of the file, where the command line names it.

    Raises:
        SettingsError: the file's fault.
    """
    variables = _hints_by_variable(kind)
    own = variable_of(kind, file_field)
    if path is None and _is_set(environ, own, variables[own]):
        path = _path(environ[own])
    if path is None:
        return {}
    known = variables.keys() - {own}
    return read_settings_file(path, known.__contains__, {short_name(name): name for name in known})


def load_one(
    kind: type[Any], environ: Mapping[str, str], field: str, *, file_field: str | None = None
) -> Any:
    """Return one setting, for a command that needs no other: those may be missing or wrong.

    Args:
        kind: as for `load`.
        environ: as for `load`.
        field: name of the field.
        file_field: as for `load_layers`; its file may hold the setting, too.

    Raises:
        SettingsError: the variable is required and not set, or does not fit; or the file's fault.
    """
    hints = typing.get_type_hints(kind)
    item = kind.__dataclass_fields__[field]
    declared: _Setting = item.metadata[_META]
    hint = hints[field]
    layers = [environ]
    if file_field is not None:
        layers.append(_from_file(kind, environ, file_field))
    for layer in layers:
        if _is_set(layer, declared.variable, hint):
            try:
                return _parse(declared, hint, layer[declared.variable])
            except ValueError as error:
                raise SettingsError(f"{declared.variable} {error}") from error
    if item.default is dataclasses.MISSING:
        raise SettingsError(f"{declared.variable} must be set: {declared.doc}")
    return item.default


@dataclasses.dataclass(frozen=True, slots=True)
class SettingValue:
    """One setting as a role would have it: its text, and where that comes from.

    `source` is ``command line``, ``environment``, ``file`` or ``default``.
    """

    variable: str
    value: str
    source: str


def values_of(
    config: Any, environ: Mapping[str, str], *, file_field: str, **overrides: Any
) -> list[SettingValue]:
    """Return every setting of loaded settings; arguments as those of `load_layers`.

    Secrets are in files, and a file is shown by its path; so nothing here is hidden.

    Raises:
        SettingsError: the file's fault.
    """
    kind = type(config)
    below = _from_file(kind, environ, file_field, overrides.get(file_field))
    hints = _hints_by_variable(kind)
    found = []
    for item in dataclasses.fields(kind):
        variable = variable_of(kind, item.name)
        if overrides.get(item.name) is not None:
            source = "command line"
        elif _is_set(environ, variable, hints[variable]):
            source = "environment"
        else:
            source = "file" if _is_set(below, variable, hints[variable]) else "default"
        found.append(SettingValue(variable, _show(getattr(config, item.name)), source))
    return found


def unknown_variables(own: Collection[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the ``WAVRY_…`` variables that nobody reads, each with the one probably meant.

    Those that begin as another role's do are left to that role.

    Args:
        own: variables that this role reads.
        environ: usually ``os.environ``.
    """
    known = {*own, *_SHARED}
    mine = known - _SHARED
    others = tuple(role for role in _ROLES if not any(name.startswith(role) for name in mine))
    return {
        name: nearest(name, known)
        for name in sorted(environ)
        if name.startswith("WAVRY_") and name not in known and not name.startswith(others)
    }


def unknown_text(name: str, meant: str) -> str:
    """Return a sentence about one of `unknown_variables`."""
    return f"{name} is read by nobody" + (f"; is {meant} meant?" if meant else "")


def variables_of(kind: type[Any]) -> list[str]:
    """Return the environment variables of all fields."""
    return [variable_of(kind, item.name) for item in dataclasses.fields(kind)]


def variable_of(kind: type[Any], field: str) -> str:
    """Return the environment variable of a field."""
    declared: _Setting = kind.__dataclass_fields__[field].metadata[_META]
    return declared.variable


def is_live(kind: type[Any], field: str) -> bool:
    """Return whether a reload of a running role puts a new value of a field in force."""
    declared: _Setting = kind.__dataclass_fields__[field].metadata[_META]
    return declared.live


def differing(one: Config, other: Config) -> tuple[str, ...]:
    """Return the names of the fields in which two settings differ, in the order of declaration."""
    fields = dataclasses.fields(one)  # type: ignore[arg-type]  # a dataclass by contract
    return tuple(
        item.name for item in fields if getattr(one, item.name) != getattr(other, item.name)
    )


def describe(kind: type[Any]) -> list[SettingRow]:
    """Return the rows of the configuration reference for a settings dataclass."""
    hints = typing.get_type_hints(kind)
    rows = []
    for item in dataclasses.fields(kind):
        declared: _Setting = item.metadata[_META]
        hint = _plain_type(hints[item.name])
        name = getattr(hint, "__name__", str(hint)) if hint != tuple[str, ...] else "list"
        default = "required" if item.default is dataclasses.MISSING else _show(item.default)
        rows.append(
            SettingRow(declared.variable, name, default, declared.unit, declared.doc, declared.live)
        )
    return rows


def _show(default: Any) -> str:
    if isinstance(default, bool):
        return "1" if default else "0"
    if isinstance(default, tuple):
        return ",".join(default)
    return "" if default is None else str(default)


def parse_address(text: str) -> tuple[str, int]:
    """Split ``127.0.0.1:4500``, ``[::1]:4500`` or ``name:4500`` into a host and a port.

    Raises:
        ValueError: another form, or a port outside 0 to 65535.
    """
    host, colon, port_text = text.rpartition(":")
    if not colon or not _PORT.fullmatch(port_text) or int(port_text) > 65535:
        raise ValueError("must be HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError("must hold an IPv6 address between brackets") from None
        host = host[1:-1]
    elif not _HOST_NAME.fullmatch(host):
        raise ValueError("must be HOST:PORT, with brackets around an IPv6 address")
    return host, int(port_text)
