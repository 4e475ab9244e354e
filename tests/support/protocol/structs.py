"""Hypothesis strategies for any msgspec struct, from its own types and bounds.

A struct that is added later is covered without a new strategy.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect


@functools.cache
def instances(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Strategy of instances of a struct that keep every bound."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    wanted = {field.name: _values(field.type) for field in info.fields}
    return st.builds(kind, **wanted)


def string_types(kind: type[msgspec.Struct]) -> Iterator[tuple[str, inspect.StrType]]:
    """Fields of text of a struct, an optional one included."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    for field in info.fields:
        parts = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
        for part in parts:
            if isinstance(part, inspect.StrType):
                yield field.name, part


def _text(kind: inspect.StrType) -> st.SearchStrategy[str]:
    longest = kind.max_length
    if kind.pattern is not None:
        texts = st.from_regex(re.compile(kind.pattern), fullmatch=True)
        return texts if longest is None else texts.filter(lambda text: len(text) <= longest)
    return st.text(
        min_size=kind.min_length or 0, max_size=40 if longest is None else min(longest, 40)
    )


def _values(kind: inspect.Type) -> st.SearchStrategy[Any]:
    match kind:
        case inspect.NoneType():
            return st.none()
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType():
            low = -(2**63) if kind.ge is None else kind.ge
            return st.integers(low, 2**63 if kind.le is None else kind.le)
        case inspect.FloatType():
            return st.floats(kind.ge, kind.le, allow_nan=False, allow_infinity=False)
        case inspect.StrType():
            return _text(kind)
        case inspect.EnumType():
            return st.sampled_from(list(kind.cls))
        case inspect.LiteralType():
            return st.sampled_from(kind.values)
        case inspect.UnionType():
            return st.one_of([_values(part) for part in kind.types])
        case inspect.VarTupleType():
            most = 3 if kind.max_length is None else min(kind.max_length, 3)
            items = st.lists(_values(kind.item_type), min_size=kind.min_length or 0, max_size=most)
            return items.map(tuple)
        case inspect.DictType():
            most = 3 if kind.max_length is None else min(kind.max_length, 3)
            return st.dictionaries(
                _values(kind.key_type), _values(kind.value_type),
                min_size=kind.min_length or 0, max_size=most,
            )  # fmt: skip
        case inspect.StructType():
            return instances(kind.cls)
        case _:
            raise NotImplementedError(f"no strategy for {kind}")
