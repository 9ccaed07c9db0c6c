"""Version 1 of the format: JSON that names a file of weights beside it.

Models of that version are read and not written.  The weights are a .npz of which the JSON has the
name and the digest; a model that replaces one removes it, unless a copy of the JSON beside it names
the same weights.  No array is larger than the file: the members of the archive are not compressed,
and each has the size in its own header.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

VERSION = 1
Member = tuple[tuple[int, ...], "np.dtype[Any]", bytes]
"""Shape, dtype and elements of an array, in C order."""

_WEIGHTS_NAME = re.compile(r"[^/\\\0]+-[0-9a-f]{16}\.npz")
#: All that zipfile raises for what is no archive, or one of another kind.
_NO_ARCHIVE: tuple[type[Exception], ...] = (
    *(ValueError, LookupError, OSError, EOFError, OverflowError, RuntimeError),
    *(struct.error, zipfile.BadZipFile),
)
#: How the writer of version 1 began.
_BEGINNING = b'{\n "format": "fastreg.layers",\n "version": 1,\n'
#: The head of a .npy as numpy.savez wrote it; read without evaluating it.
_HEAD = re.compile(
    rb"\{'descr': '([<>][fu][248])', 'fortran_order': False, "
    rb"'shape': \(((?:\d{1,18}, ){0,63}\d{1,18},?)?\), \} *\n"
)


def weights_of_one(target: Path) -> Path | None:
    """Return the weights file of the model at `target`, if version 1 saved it and for no other."""
    weights = weights_beside(target)
    if weights is not None:
        for other in target.parent.glob("*.json"):
            if other != target and weights_beside(other) == weights:
                return None
    return weights


def weights_beside(target: Path) -> Path | None:
    """Return the weights file of the model at `target`, if version 1 saved it."""
    try:
        if not target.is_file():  # a pipe would wait for a writer
            return None
        with open(target, "rb") as file:
            if file.read(len(_BEGINNING)) != _BEGINNING:
                return None
            record = json.loads(_BEGINNING + file.read())
    except (OSError, ValueError, RecursionError):
        return None
    return _named(target, record)


def read(target: Path, record: dict[str, Any]) -> tuple[Path, dict[str, Member]]:
    """Return the path of the weights, and the arrays in the file by name."""
    weights = _named(target, record)
    if weights is None:
        raise ValueError(f"{target} names no weights file in its directory")
    content = weights.read_bytes()
    if hashlib.sha256(content).hexdigest() != record["weights"].get("sha256"):
        raise ValueError(f"{weights} has changed since {target} was saved with it, or is damaged")
    try:
        return weights, _members(content)
    except _NO_ARCHIVE as error:
        raise ValueError(f"{weights} holds no weights ({error})") from None


def _named(target: Path, record: Any) -> Path | None:
    weights = record.get("weights") if isinstance(record, dict) else None
    name = weights.get("file") if isinstance(weights, dict) else None
    if isinstance(name, str) and _WEIGHTS_NAME.fullmatch(name):
        return target.with_name(name)
    return None


def _members(content: bytes) -> dict[str, Member]:
    members: dict[str, Member] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > len(content):
            raise ValueError("its members are larger than the file")
        for entry in entries:
            name = entry.filename.removesuffix(".npy")
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise ValueError(f"{entry.filename!r} is compressed or encrypted")
            if name == entry.filename or name in members:
                raise ValueError(f"{entry.filename!r} is no array, or is there twice")
            members[name] = _array(name, archive.read(entry))
    return members


def _array(name: str, content: bytes) -> Member:
    """Return the array in a .npy."""
    if content[:8] == b"\x93NUMPY\1\0":
        (length,), start = struct.unpack_from("<H", content, 8), 10
    elif content[:8] in (b"\x93NUMPY\2\0", b"\x93NUMPY\3\0"):
        (length,), start = struct.unpack_from("<I", content, 8), 12
    else:
        raise ValueError(f"{name} is no array")
    head = _HEAD.fullmatch(content, start, start + length)
    if head is None:
        raise ValueError(f"{name} is no array of numbers")
    shape = tuple(int(extent) for extent in (head[2] or b"").split(b",") if extent)
    dtype, data = np.dtype(head[1].decode("ascii")), content[start + length :]
    if len(data) != dtype.itemsize * math.prod(shape):
        raise ValueError(
            f"{name} has {len(data)} bytes, not those of shape {shape} and dtype {dtype}"
        )
    return shape, dtype, data
