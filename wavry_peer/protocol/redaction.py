"""What may be said aloud about a message: no secret in a `repr`, no value in an error.

A `repr` ends in logs, tracebacks and terminals (rich asks `__rich_repr__`), and the text of a
validation error goes back to the client and into a log line.  msgspec repeats the values of unknown
fields, enumerations and tags in its errors; anything may stand there, a password as well.
"""

import re
from typing import Any, ClassVar, Final

import msgspec

__all__ = ["REDACTED", "RedactedStruct", "fault_text"]

REDACTED: Final = "<redacted>"

_AT: Final = r"(?: - at `(?P<path>\$[A-Za-z0-9_.\[\]]{0,120})`)?"
_UNKNOWN_FIELD: Final = re.compile(rf"Object contains unknown field `(?P<name>[^`]*)`{_AT}")
_BAD_VALUE: Final = re.compile(rf"Invalid (?:enum )?value .*?{_AT}", re.DOTALL)
_FIELD_NAME: Final = re.compile(r"[a-z][a-z_]{0,31}")
"""What a field of ours could be called.  No digits: a mistyped field is worth naming, a key or
a password in its place is not."""


class RedactedStruct(msgspec.Struct, frozen=True):
    """Base of structs whose `SECRET_FIELDS` are never shown by `repr` or rich."""

    SECRET_FIELDS: ClassVar[frozenset[str]] = frozenset()

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        shown = []
        for name in self.__struct_fields__:
            value = getattr(self, name)
            hidden = name in self.SECRET_FIELDS and value is not None
            shown.append((name, REDACTED if hidden else value))
        return shown

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"


def fault_text(error: msgspec.ValidationError) -> str:
    """Return the text of a validation error that names the field and never repeats a value."""
    text = str(error)
    if match := _UNKNOWN_FIELD.fullmatch(text):
        name = match["name"] if _FIELD_NAME.fullmatch(match["name"]) else ""
        said = f"Object contains unknown field `{name}`" if name else "Object has an unknown field"
        return _located(said, match["path"])
    if text.startswith("Object contains unknown field"):
        return "Object has an unknown field"
    if match := _BAD_VALUE.fullmatch(text):
        return _located("Value is not one of those allowed", match["path"])
    return text


def _located(said: str, path: str | None) -> str:
    return f"{said} - at `{path}`" if path else said
