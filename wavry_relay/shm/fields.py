"""Fields of a record in shared memory as plain attributes.

A record class names its fields with `U64`, `U32` or `U8` and sets `segment` and `base` (offset of
the record, in bytes).  Each access is one whole aligned word.
"""

from typing import Protocol, overload

from .layout import Field
from .segment import Segment

__all__ = ["U8", "U32", "U64", "InSegment"]


class InSegment(Protocol):
    """What a class with word attributes must have."""

    segment: Segment
    base: int


class U64:
    """A 64-bit word; `at` selects one of an array."""

    __slots__ = ("_index",)

    def __init__(self, field: Field, at: int = 0) -> None:
        self._index = field.offset // 8 + at

    @overload
    def __get__(self, record: None, owner: type) -> "U64": ...
    @overload
    def __get__(self, record: InSegment, owner: type) -> int: ...
    def __get__(self, record: InSegment | None, owner: type) -> "U64 | int":
        if record is None:
            return self
        return record.segment.u64[(record.base >> 3) + self._index]

    def __set__(self, record: InSegment, value: int) -> None:
        record.segment.u64[(record.base >> 3) + self._index] = value


class U32:
    """A 32-bit word."""

    __slots__ = ("_index",)

    def __init__(self, field: Field) -> None:
        self._index = field.offset // 4

    @overload
    def __get__(self, record: None, owner: type) -> "U32": ...
    @overload
    def __get__(self, record: InSegment, owner: type) -> int: ...
    def __get__(self, record: InSegment | None, owner: type) -> "U32 | int":
        if record is None:
            return self
        return record.segment.u32[(record.base >> 2) + self._index]

    def __set__(self, record: InSegment, value: int) -> None:
        record.segment.u32[(record.base >> 2) + self._index] = value


class U8:
    """A byte."""

    __slots__ = ("_index",)

    def __init__(self, field: Field) -> None:
        self._index = field.offset

    @overload
    def __get__(self, record: None, owner: type) -> "U8": ...
    @overload
    def __get__(self, record: InSegment, owner: type) -> int: ...
    def __get__(self, record: InSegment | None, owner: type) -> "U8 | int":
        if record is None:
            return self
        return record.segment.u8[record.base + self._index]

    def __set__(self, record: InSegment, value: int) -> None:
        record.segment.u8[record.base + self._index] = value
