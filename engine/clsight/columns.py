"""Columns of any type -> text or whole numbers, and why a value cannot be one."""

import re
import uuid
from contextlib import suppress
from decimal import Decimal
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

_NUMBER = re.compile(r"[+-]?(\d{1,40}\.?\d{0,40}|\.\d{1,40})(e[+-]?\d{1,3})?", re.ASCII)
_SHOWN = 40
"""Most characters that a reason shows of a value."""

Reasons: TypeAlias = pa.Array
"""Why a value cannot be used, as one line of text; null where it can."""


def unpacked(column: pa.Array) -> pa.Array:
    """The values themselves, of a dictionary or of an extension type."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column


def is_text(kind: pa.DataType) -> bool:
    """True for strings, also where nothing says that the bytes are text."""
    return is_string(kind) or any(is_kind(kind) for is_kind in (
        pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))


def is_string(kind: pa.DataType) -> bool:
    """True for strings of any layout."""
    return any(is_kind(kind) for is_kind in (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def is_number(kind: pa.DataType) -> bool:
    """True for numbers of any kind, and for true and false."""
    return any(is_kind(kind) for is_kind in (
        pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal))


def text(column: pa.Array, name: str) -> tuple[pa.Array, Reasons]:
    """Strings or bytes as valid strings; what is not UTF-8 has U+FFFD in its place, and a reason.

    Args:
        column: of a type that `is_text` holds for; Arrow does not look whether strings are valid.
        name: how the reason calls the value.
    """
    raw = column.cast(pa.binary())
    with suppress(pa.ArrowInvalid):
        return raw.cast(pa.string()), pa.nulls(len(raw), pa.string())
    values = raw.to_pylist()
    decoded = [None if value is None else value.decode("utf-8", "replace") for value in values]
    reasons = [None if new is None or new.encode() == value
               else f"{name} is not valid Unicode (UTF-8)"
               for new, value in zip(decoded, values, strict=True)]
    return pa.array(decoded, pa.string()), pa.array(reasons, pa.string())


def spelled(column: pa.Array, name: str) -> tuple[pa.Array, Reasons]:
    """Values of any type that is not nested, as text."""
    column = unpacked(column)
    if is_text(column.type):
        return text(column, name)
    if pa.types.is_fixed_size_binary(column.type):
        return _digits(column)
    return column.cast(pa.string()), pa.nulls(len(column), pa.string())


def identifiers(column: pa.Array, name: str) -> tuple[pa.Array, Reasons]:
    """The same for ids, which are digits where nothing says that the bytes are text."""
    column = unpacked(column)
    is_binary = is_text(column.type) and not is_string(column.type)
    return _digits(column) if is_binary else spelled(column, name)


def _digits(column: pa.Array) -> tuple[pa.Array, Reasons]:
    """Bytes as UUIDs where they are 16, else as hexadecimal digits."""
    digits = [None if value is None else str(uuid.UUID(bytes=value)) if len(value) == 16
              else value.hex() for value in column.to_pylist()]
    return pa.array(digits, pa.string()), pa.nulls(len(digits), pa.string())


def of_type(column: pa.Array, kind: pa.DataType, name: str) -> tuple[pa.Array, Reasons]:
    """Values as int64 or string, whichever `kind` is."""
    return whole(column, name) if pa.types.is_int64(kind) else spelled(column, name)


def whole(column: pa.Array, name: str) -> tuple[pa.Array, Reasons]:
    """Values as int64; 1.0, "1" and true are 1, and NaN is missing."""
    column = unpacked(column)
    if pa.types.is_integer(column.type):
        with suppress(pa.ArrowInvalid):
            return column.cast(pa.int64()), pa.nulls(len(column), pa.string())
    column, unread = spelled(column, name) if is_text(column.type) else (
        column, pa.nulls(len(column), pa.string()))
    # Each distinct value once: labels have few.
    encoded = column.dictionary_encode()
    found = [_whole(value, name) for value in encoded.dictionary.to_pylist()]
    numbers = pa.array([number for number, _ in found], pa.int64()).take(encoded.indices)
    reasons = pa.array([reason for _, reason in found], pa.string()).take(encoded.indices)
    return numbers, pc.coalesce(unread, reasons)


def mostly_numbers(column: pa.Array) -> bool:
    """True where more texts than not spell a number, whole or not, or say true or false."""
    texts, _ = text(unpacked(column), "")
    said = pc.value_counts(texts.drop_null()).to_pylist()
    numbers = sum(one["counts"] for one in said if _spelled_number(one["values"]) is not None)
    return bool(2 * numbers > len(texts) - texts.null_count)


def shown(value: object) -> str:
    """A value in a message: on one line, and not too long."""
    if not isinstance(value, str):
        return str(value)
    return repr(value) if len(value) <= _SHOWN else f"{value[:_SHOWN]!r}…"


def _whole(value: Any, name: str) -> tuple[int | None, str | None]:
    if value is None or value != value:
        return None, None
    number = _number(value)
    if number is None:
        return None, f"{name} {shown(value)} is not a whole number"
    if not -(2**63) <= number < 2**63:
        return None, f"{name} {shown(value)} is too large (a whole number has 64 bits)"
    return number, None


def _number(value: Any) -> int | None:
    """The whole number that a value is, or that a text spells."""
    number = _spelled_number(value) if isinstance(value, str) else Decimal(value)
    if number is None or not number.is_finite() or number != number.to_integral_value():
        return None
    return int(number)


def _spelled_number(said: str) -> Decimal | None:
    word = said.strip().lower()
    if word in ("true", "false"):
        return Decimal(word == "true")
    return Decimal(word) if _NUMBER.fullmatch(word) else None
