"""Models on disk: one JSON file with the form of the model and, in base64, its weights.

Contract: nothing is decoded, and no weight made, before names, shapes and dtypes in the file are
known to fit the model.  No pickles, no path that leads elsewhere; what does not fit is a ValueError
that names the file.  The part "config" is Keras' form.  Weights are little-endian and in C order;
"sha256" is the digest of all their bytes, one weight after the other.  What version 1 saved, a file
of weights beside the JSON, is read by :mod:`.two_files`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._base import dtypes, errors, files
from .._base.dtypes import Array
from . import two_files
from .base import Form

FORMAT = "fastreg.layers"
VERSION = 2

#: The dtype of NumPy in the file; bfloat16, which NumPy does not have, by its bits.
STORED = {row.spoken: f"<{row.stored.str[1:]}" for row in dtypes.FLOATS.values()}

#: Saved forms have about 10 levels; some thousand would be more than Python's stack takes.
MOST_LEVELS = 100
MOST_AXES = 64  # of a NumPy array

#: Bytes that are encoded at once; a multiple of 3, so that only the last piece is padded.
_PIECE = 3 << 18


@dataclass
class Saved:
    """The content of a file; its weights are still encoded."""

    file: Path
    config: Any
    forms: Mapping[str, Form]
    decoded: Callable[[], dict[str, Array]]
    """Returns the arrays, bfloat16 as bits; ValueError when they are damaged."""

    def require(self, wanted: Mapping[str, Form]) -> None:
        """Raise ValueError unless names, shapes and dtypes of the weights are the wanted ones."""
        missing, additional = wanted.keys() - self.forms.keys(), self.forms.keys() - wanted.keys()
        if missing or additional:
            raise ValueError(
                f"{self.file} does not fit its model: missing "
                f"{errors.listed(sorted(missing)) or 'none'}, additional "
                f"{errors.listed(sorted(additional)) or 'none'}"
            )
        for name, (shape, dtype) in wanted.items():
            if self.forms[name] != (shape, dtype):
                its_shape, its_dtype = self.forms[name]
                raise ValueError(
                    f"{self.file} does not fit its model: {name} has shape {its_shape} and dtype "
                    f"{its_dtype}, not {shape} and {dtype}"
                )


def save(
    config: Mapping[str, Any], weights: Mapping[str, Array], path: str | os.PathLike[str]
) -> None:
    """Write a model; see :meth:`fastreg.layers.Sequential.save`."""
    target = _json_path(path)
    record = {"format": FORMAT, "version": VERSION, "class_name": "Sequential", "config": config}
    head = json.dumps(record, indent=1, allow_nan=False)
    before = two_files.weights_of_one(Path(os.path.realpath(target)))
    files.replace(target, lambda file: file.writelines(_pieces(head, weights)))
    if before is not None:
        before.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> Saved:
    """Read a model; see :meth:`fastreg.layers.Sequential.load`."""
    target = _json_path(path)
    lost: tuple[bytes, FileNotFoundError] | None = None
    while True:
        content = target.read_bytes()
        if lost is not None and content == lost[0]:
            raise lost[1]
        record = _parsed(target, content)
        if record["version"] == VERSION:
            return _read(target, record)
        try:
            return _read_two_files(target, record)
        except FileNotFoundError as error:  # a save has replaced the model since, if it is another
            lost = content, error


def stored(weight: Array) -> Array:
    """Return a view of a weight in a dtype of NumPy."""
    return weight.view(np.uint16) if weight.dtype.name == "bfloat16" else weight


def _json_path(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a path, not {errors.described(path)}")
    target = Path(path)
    if target.suffix != ".json":
        raise ValueError(f'path must end in ".json", not be {str(path)!r}')
    return target


def _pieces(head: str, weights: Mapping[str, Array]) -> Iterator[bytes]:
    """Yield the file piece by piece, so that the text is never whole in memory."""
    digest = hashlib.sha256()
    yield head.removesuffix("\n}").encode("utf-8") + b',\n "weights": ['
    for place, (name, weight) in enumerate(weights.items()):
        dtype = weight.dtype.name
        plain = np.ascontiguousarray(stored(weight), STORED[dtype])
        content = plain.reshape(-1).view(np.uint8).data
        fields = {"name": name, "dtype": dtype, "shape": weight.shape, "data": ""}
        yield b",\n  " if place else b"\n  "
        yield json.dumps(fields).removesuffix('"}').encode("utf-8")
        for start in range(0, plain.nbytes, _PIECE):
            piece = content[start : start + _PIECE]
            digest.update(piece)
            yield binascii.b2a_base64(piece, newline=False)
        yield b'"}'
    yield f'\n ],\n "sha256": "{digest.hexdigest()}"\n}}\n'.encode()


def _parsed(target: Path, content: bytes) -> dict[str, Any]:
    """Return the record in a file, checked but for config and weights."""
    try:
        record = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
        _refuse_levels(record)
    except RecursionError:
        raise ValueError(f"{target} is nested too deeply; pass what save(path) wrote") from None
    except ValueError as error:
        raise ValueError(f"{target} is not JSON ({error}); pass what save(path) wrote") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{target} is not a model that fastreg saved; pass what save(path) wrote")
    version = record.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        said = version if type(version) is int and version < 1000 else errors.described(version)
        raise ValueError(
            f"{target} has version {said} of the format; this fastreg reads 1 to {VERSION}"
        )
    if "config" not in record:
        raise ValueError(f'{target} has no "config", the form of the model')
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it has {name}, which JSON has not")


def _refuse_levels(record: Any) -> None:
    level: list[Any] = [record]
    for _ in range(MOST_LEVELS):
        nested = [x for x in level if isinstance(x, (dict, list))]
        if not nested:
            return
        level = [y for x in nested for y in (x.values() if isinstance(x, dict) else x)]
    raise RecursionError


def _read(target: Path, record: dict[str, Any]) -> Saved:
    items = record.get("weights")
    if not isinstance(items, list):
        raise ValueError(f'{target} has no list of "weights", but {errors.described(items)}')
    forms: dict[str, Form] = {}
    encoded: dict[str, str] = {}
    for place, item in enumerate(items):
        where = f'{target}, record["weights"][{place}],'
        name, shape, dtype, data = _fields(item, where)
        if name in forms:
            raise ValueError(f"{where} has the name {name!r} once more")
        size = np.dtype(STORED[dtype]).itemsize * math.prod(shape)
        characters = 4 * -(-size // 3)
        if len(data) != characters:
            raise ValueError(
                f"{where} has {len(data)} characters of data; shape {shape} and dtype {dtype} "
                f"have {characters}"
            )
        forms[name], encoded[name] = (shape, dtype), data

    def decoded() -> dict[str, Array]:
        arrays = {}
        digest = hashlib.sha256()
        for name, (shape, dtype) in forms.items():
            try:
                content = base64.b64decode(encoded[name], validate=True)
                array = np.frombuffer(content, STORED[dtype]).reshape(shape)
            except ValueError as error:
                raise ValueError(f"{target}: the data of {name} is no base64 ({error})") from None
            digest.update(content)
            arrays[name] = array
        if digest.hexdigest() != record.get("sha256"):
            raise ValueError(f"{target}: its weights have changed since save(path), or are damaged")
        return arrays

    return Saved(target, record["config"], forms, decoded)


def _fields(item: Any, where: str) -> tuple[str, tuple[int, ...], str, str]:
    """Return name, shape, dtype and data of one weight, each of its kind."""
    if not isinstance(item, dict):
        raise ValueError(f"{where} must be a dict, not {errors.described(item)}")
    name, dtype, data = (_text(item, key, where) for key in ("name", "dtype", "data"))
    if dtype not in STORED:
        raise ValueError(f"{where} has dtype {dtype!r}, not one of {errors.listed(STORED)}")
    return name, _shape(item.get("shape"), where), dtype, data


def _text(item: dict[str, Any], key: str, where: str) -> str:
    text = item.get(key)
    if not isinstance(text, str):
        raise ValueError(f"{where} must have a string {key!r}, not {errors.described(text)}")
    return text


def _shape(shape: Any, where: str) -> tuple[int, ...]:
    if (
        not isinstance(shape, list)
        or len(shape) > MOST_AXES
        or not all(type(extent) is int and 0 <= extent <= sys.maxsize for extent in shape)
    ):
        raise ValueError(f"{where} must have the shape of an array, not {errors.described(shape)}")
    return tuple(shape)


def _read_two_files(target: Path, record: dict[str, Any]) -> Saved:
    weights, members = two_files.read(target, record)
    spoken = {np.dtype(form): name for name, form in STORED.items()}
    forms: dict[str, Form] = {}
    for name, (shape, dtype, _) in members.items():
        native = dtype.newbyteorder("<")
        if native not in spoken:
            raise ValueError(f"{weights} holds no weights ({name} has dtype {dtype})")
        forms[name] = shape, spoken[native]

    def decoded() -> dict[str, Array]:
        return {
            name: np.frombuffer(data, dtype).reshape(shape)
            for name, (shape, dtype, data) in members.items()
        }

    return Saved(weights, record["config"], forms, decoded)
