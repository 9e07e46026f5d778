"""Tensors as the Open Inference Protocol sends them: named, typed, flat and in row-major order.

Two encodings of the same data: JSON values, and raw bytes (little-endian; BYTES elements each after their length, a
32-bit integer).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from marctl_handlers.core.columns import Column
from marctl_handlers.core.errors import Invalid

NUMBERS = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""Data type to numpy's name of it; BYTES is apart. (numpy is imported where it is used: commands that only need to know
the protocol's types start sooner.)"""
LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Tensor:
    """`values` are flat; their number is the product of `shape`."""

    name: str
    datatype: str
    shape: list[int]
    values: list[Any]

    def rows(self, wide: bool) -> list[Any]:
        """A value per row, or a list of them without the empty texts at its end. Raises Invalid if the shape differs.

        A column that is not wide may also come as rows of one value.
        """
        if wide and len(self.shape) == 2:
            width = self.shape[1]
            return [without_end(self.values[i : i + width]) for i in range(0, len(self.values), width or 1)]
        if not wide and (len(self.shape) == 1 or (len(self.shape) == 2 and self.shape[1] == 1)):
            return self.values
        expected = "[rows, values]" if wide else "[rows]"
        raise Invalid(f"input {self.name} has shape {self.shape}; expected {expected}")


def without_end(values: list[Any]) -> list[Any]:
    end = len(values)
    while end and values[end - 1] == "":
        end -= 1
    return values[:end]


def of_column(column: Column, rows: Sequence[Any]) -> Tensor:
    """A tensor of one answer per row; rows of a wide column are filled up to the longest."""
    if not column.wide:
        return Tensor(column.name, column.datatype, [len(rows)], list(rows))
    width = max(map(len, rows), default=0)
    empty: Any = "" if column.datatype == "BYTES" else 0
    values = [value for row in rows for value in (*row, *[empty] * (width - len(row)))]
    return Tensor(column.name, column.datatype, [len(rows), width], values)


def check(tensor: Tensor) -> Tensor:
    """The same tensor; raises Invalid if its values do not fit its shape."""
    if any(size < 0 for size in tensor.shape) or prod(tensor.shape) != len(tensor.values):
        raise Invalid(f"input {tensor.name} has {len(tensor.values)} values, its shape {tensor.shape} says otherwise")
    return tensor


def flat(data: Any) -> Iterator[Any]:
    """The values of JSON data, which may be nested as the shape is, or flat."""
    if isinstance(data, list):
        for item in data:
            yield from flat(item)
    else:
        yield data


def unpack(name: str, datatype: str, raw: bytes) -> list[Any]:
    """Values from raw bytes; BYTES must be UTF-8. Raises Invalid."""
    if datatype == "BYTES":
        return [text_of(name, element) for element in elements(name, raw)]
    if datatype not in NUMBERS:
        raise Invalid(f"input {name} is of type {datatype}; expected BYTES or one of {', '.join(NUMBERS)}")
    import numpy as np

    kind = np.dtype(NUMBERS[datatype])
    if len(raw) % kind.itemsize:
        raise Invalid(f"input {name} has {len(raw)} bytes, which are not whole values of type {datatype}")
    values: list[Any] = np.frombuffer(raw, kind).tolist()
    return values


def elements(name: str, raw: bytes) -> Iterator[bytes]:
    place = 0
    while place < len(raw):
        start = place + LENGTH.size
        end = start + LENGTH.unpack_from(raw, place)[0] if start <= len(raw) else start
        if end > len(raw):
            raise Invalid(f"input {name} ends within an element; each is a 32-bit length and that many bytes")
        yield raw[start:end]
        place = end


def text_of(name: str, element: bytes) -> str:
    try:
        return element.decode()
    except UnicodeDecodeError as err:
        raise Invalid(f"input {name} holds a text that is not UTF-8") from err


def pack(tensor: Tensor) -> bytes:
    """Raw bytes of its values."""
    if tensor.datatype != "BYTES":
        import numpy as np

        return np.asarray(tensor.values, NUMBERS[tensor.datatype]).tobytes()
    texts = [value.encode("utf-8", "surrogatepass") for value in tensor.values]
    return b"".join(part for text in texts for part in (LENGTH.pack(len(text)), text))
