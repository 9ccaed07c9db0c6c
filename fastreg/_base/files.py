"""Replacing a file: whoever reads it gets the old one or the new one, whole.

The new content is written into a temporary file in the same directory, brought to the disk, and
renamed over the old one, whatever interrupts that.  A temporary of a killed process is removed at
the next replacement of that file; one in use is recognized by its lock, which ends with its
process.  A link stays a link, the mode of the file stays, and a file that is new gets the mode that
the umask sets.  A path that is not a regular file, a pipe or ``/dev/stdout``, is written, not
replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import IO, Any

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not a POSIX system: what killed processes left stays
    fcntl = None

#: Seconds that a temporary file is left alone, because its process may not have locked it yet.
GRACE = 5.0


def replace(path: str | os.PathLike[str], write: Callable[[IO[bytes]], Any]) -> None:
    """Replace the file at `path`, or at the end of a link, by what `write` writes.

    `write` gets a binary file, open for writing.  An OSError has `path` as its filename; the old
    file is unchanged then.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = _mode_of(path)
        if mode is not None and not stat.S_ISREG(mode):
            with open(path, "wb") as file:
                write(file)
            return
        _remove_abandoned(target)
        _write_and_rename(target, mode, write)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(
            error.errno, f"{error.strerror}; nothing has been replaced", os.fspath(path)
        ) from error
    _sync_directory(target.parent)


def replace_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace the file at `path` by a text; see :func:`replace`."""
    replace(path, lambda file: file.write(text.encode("utf-8")))


def require_writable(path: str | os.PathLike[str]) -> None:
    """Raise OSError for a path to which :func:`replace` could not write."""
    mode = _mode_of(path)
    if mode is not None and stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if mode is None or stat.S_ISREG(mode):
        place, wanted = os.path.dirname(os.path.realpath(path)), os.W_OK | os.X_OK
        if not os.path.isdir(place):
            raise FileNotFoundError(errno.ENOENT, "there is no such directory", place)
    else:
        place, wanted = os.fspath(path), os.W_OK
    if not os.access(place, wanted):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place)


def _mode_of(path: str | os.PathLike[str]) -> int | None:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def _prefix(target: Path) -> str:
    return f".{target.name[:48]}."  # with what follows a name that every file system takes


def _write_and_rename(target: Path, mode: int | None, write: Callable[[IO[bytes]], Any]) -> None:
    temporary = target.with_name(f"{_prefix(target)}{secrets.token_hex(4)}.tmp")
    # never more open to others, not even for a moment, than what it replaces
    widest = 0o666 if mode is None else stat.S_IMODE(mode) & 0o666
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, widest)) as file:
            _lock(file)
            write(file)
            file.flush()
            if mode is not None:
                os.chmod(temporary, stat.S_IMODE(mode))
            os.fsync(file.fileno())
            os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _lock(file: IO[bytes]) -> bool:
    """Lock a file until it is closed; return whether that was possible, without waiting."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another has it, or the file system has no locks
        return False
    return True


def _remove_abandoned(target: Path) -> None:
    name = re.compile(re.escape(_prefix(target)) + r"[0-9a-f]{8}\.tmp")
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            if name.fullmatch(entry.name):
                _remove_if_abandoned(entry)


def _remove_if_abandoned(entry: os.DirEntry[str]) -> None:
    with contextlib.suppress(OSError):
        if not entry.is_file(follow_symlinks=False):
            return
        if time.time() - entry.stat(follow_symlinks=False).st_mtime < GRACE:
            return
        with open(entry.path, "r+b") as file:
            if _lock(file):
                os.unlink(entry.path)


def _sync_directory(directory: Path) -> None:
    """Flush the rename itself to the disk, where the file system can."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:  # a directory that may be written and not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
