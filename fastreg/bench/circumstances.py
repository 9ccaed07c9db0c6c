"""Where, when and how a run took place: what its figures depend on.

Contract: facts only, from Python and the files of the system; a fact that the system does not give
is absent. No framework is imported for them.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fastreg
from fastreg import _info
from fastreg._engine import backend

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
GPUS = Path("/proc/driver/nvidia/gpus")

#: Settings that change where and how arrays are allocated.
ALLOCATOR = (
    "LD_PRELOAD",
    "GLIBC_TUNABLES",
    "MALLOC_ARENA_MAX",
    "MALLOC_CONF",
    "NUMPY_MADVISE_HUGEPAGE",
    "PYTORCH_CUDA_ALLOC_CONF",
)


@dataclass(frozen=True)
class Circumstances:
    """Of a run; ``peer_threads`` is 0 where a peer decides itself.

    What has a default is not in records of older versions.
    """

    command: str
    date: str
    repeats: int
    threads: int
    backend: str
    instruction_set: str
    machine: dict[str, Any]
    versions: dict[str, str]
    peer_threads: dict[str, int]
    memory: dict[str, Any] | None = None
    gpus: list[str] | None = None
    commit: str | None = None

    @classmethod
    def here(
        cls, command: str, repeats: int, peer_threads: Mapping[str, int], modules: Sequence[str]
    ) -> Circumstances:
        """Return those of this process, now."""
        # With the build, as a library that is imported says it: 2.14.1+cpu is not 2.14.1+cu130.
        versions = {module: str(_info.version(module)) for module in ("numpy", *modules)}
        return cls(
            command=command,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            repeats=repeats,
            threads=fastreg.get_num_threads(),
            backend=backend.name,
            instruction_set=backend.instruction_set(),
            machine=_info.machine(),
            versions={"fastreg": fastreg.__version__, **versions},
            peer_threads=dict(peer_threads),
            memory=memory(),
            gpus=gpus(),
            commit=commit(),
        )

    def title(self) -> str:
        """Return one line for the head of a table or a picture."""
        own, *others = self.versions.items()
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return (
            f"fastreg {own[1]} ({self.backend}, {self.instruction_set}, {threads}), "
            f"{', '.join(' '.join(other) for other in others)}, {self.machine['processor']}, "
            f"{self.date[:10]}"
        )

    def differing_threads(self) -> dict[str, str]:
        """Return the peers that do not run on as many threads as fastreg."""
        return {
            name: str(count) if count else "its own choice"
            for name, count in self.peer_threads.items()
            if count != self.threads
        }


def memory() -> dict[str, Any]:
    """Return caches, sizes of pages and the allocator, as far as the system tells.

    Examples
    --------
    >>> sorted(memory())
    ['allocator', 'caches', 'huge_pages', 'page_bytes']
    """
    settings = {name: os.environ[name] for name in ALLOCATOR if name in os.environ}
    return {
        "caches": [
            {name: _read(folder / name) for name in ("level", "type", "size", "shared_cpu_list")}
            for folder in sorted(CACHES.glob("index*"))
        ],
        "page_bytes": os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None,
        "huge_pages": _read(HUGE_PAGES).partition("[")[2].partition("]")[0] or None,
        "allocator": {"libc": " ".join(platform.libc_ver()).strip(), **settings},
    }


def gpus() -> list[str]:
    """Return the model of each GPU, as NVIDIA's driver says it; no GPU is asked itself."""
    said = [_read(folder / "information") for folder in sorted(GPUS.glob("*"))]
    return [text.partition("Model:")[2].partition("\n")[0].strip() for text in said]


def commit() -> str | None:
    """Return the commit of the checkout that fastreg lies in, with -dirty where it was changed."""
    root = Path(fastreg.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
