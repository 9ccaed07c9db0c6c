"""Models on disk: the form as JSON, the weights as .npz beside it.

Contract
--------
- ``digits.json`` names its weights file, ``digits-<digest>.npz``, and the digest of its content.
  The weights are written first, under a name of their own, and the JSON is renamed into place last:
  at every moment ``digits.json`` is the old model or the new one, whole.  Then the old weights go,
  which a copy of the old JSON may still name.
- :func:`load` reads no pickles, follows no path out of the directory, and refuses what does not
  fit: another format, other content, missing or additional weights, other shapes or dtypes.
- The part "config" is Keras' form; bfloat16 is stored as its bits in uint16.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import _errors

if TYPE_CHECKING:
    from .sequential import Sequential

Array = npt.NDArray[Any]

FORMAT = "fastreg.layers"
VERSION = 1
_WEIGHTS_NAME = re.compile(r"[^/\\]+-[0-9a-f]{16}\.npz")


def save(model: Sequential, path: str | os.PathLike[str]) -> None:
    """Write a built model; see :meth:`fastreg.layers.Sequential.save`."""
    target = _json_path(path)
    config = model.get_config()
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: _stored(weight) for name, weight in model.weights.items()}
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    weights = target.with_name(f"{target.stem}-{digest[:16]}.npz")
    record = {
        "format": FORMAT,
        "version": VERSION,
        "class_name": "Sequential",
        "config": config,
        "weights": {"file": weights.name, "sha256": digest},
    }
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"

    before = _weights_of(target)
    is_new = not weights.exists()
    try:
        _write(weights, lambda file: file.write(content))
        _write(target, lambda file: file.write(text.encode("utf-8")))
    except BaseException:
        if is_new:
            weights.unlink(missing_ok=True)
        raise
    if before is not None and before != weights:
        before.unlink(missing_ok=True)


def load(
    path: str | os.PathLike[str], custom_objects: Mapping[str, Any] | None = None
) -> Sequential:
    """Read a model; see :meth:`fastreg.layers.Sequential.load`."""
    from .sequential import Sequential

    target = _json_path(path)
    try:
        record = json.loads(target.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{target} is not JSON ({error}); pass what save(path) wrote") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{target} is not a model that fastreg saved; pass what save(path) wrote")
    if record.get("version") != VERSION:
        raise ValueError(
            f"{target} has version {record.get('version')!r} of the format; this fastreg reads "
            f"{VERSION}"
        )
    weights = _named_weights(target, record)
    if weights is None:
        raise ValueError(f"{target} names no weights file in its directory")
    content = weights.read_bytes()
    if hashlib.sha256(content).hexdigest() != record["weights"].get("sha256"):
        raise ValueError(f"{weights} has changed since {target} was saved with it, or is damaged")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{weights} holds no weights ({error})") from None
    if "config" not in record:
        raise ValueError(f'{target} has no "config", the form of the model')
    try:
        model = Sequential.from_config(record["config"], custom_objects)
    except (TypeError, ValueError) as error:  # in a file a wrong kind is a wrong value
        raise ValueError(f"{target}: {error}") from error
    own = model.weights
    missing, additional = own.keys() - arrays.keys(), arrays.keys() - own.keys()
    if missing or additional:
        raise ValueError(
            f"{weights} does not fit its model: missing {_errors.listed(sorted(missing)) or 'none'}"
            f", additional {_errors.listed(sorted(additional)) or 'none'}"
        )
    for name, weight in own.items():
        stored = _stored(weight)
        if (arrays[name].shape, arrays[name].dtype) != (stored.shape, stored.dtype):
            raise ValueError(
                f"{weights} does not fit its model: {name} has shape {arrays[name].shape} and "
                f"dtype {arrays[name].dtype}, not {stored.shape} and {stored.dtype}"
            )
    for name, weight in own.items():
        _stored(weight)[...] = arrays[name]
    return model


def _json_path(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a path, not {_errors.described(path)}")
    target = Path(path)
    if target.suffix != ".json":
        raise ValueError(
            f'path must end in ".json", not be {str(path)!r}; the weights go beside it'
        )
    return target


def _stored(weight: Array) -> Array:
    """View a weight in a dtype that NumPy's files have."""
    return weight.view(np.uint16) if weight.dtype.name == "bfloat16" else weight


def _named_weights(target: Path, record: Any) -> Path | None:
    """Give the weights file that a record names, if it is one that :func:`save` would name."""
    weights = record.get("weights") if isinstance(record, dict) else None
    name = weights.get("file") if isinstance(weights, dict) else None
    if isinstance(name, str) and _WEIGHTS_NAME.fullmatch(name):
        return target.with_name(name)
    return None


def _weights_of(target: Path) -> Path | None:
    """Give the weights file of the model that is there now."""
    try:
        record = json.loads(target.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return None
    return _named_weights(target, record)


def _write(target: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file under another name, and rename it when all of it is on the disk."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
