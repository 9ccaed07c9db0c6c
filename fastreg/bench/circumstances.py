"""Where, when and how a run took place: what its figures depend on.

Contract: facts only, from Python and the files of the system; a fact that the system does not give
is absent. No framework is imported for them.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import fastreg
from fastreg import _info
from fastreg._engine import backend
from fastreg.bench.row import Row, Work

CPUS = Path("/proc/cpuinfo")
CPU_TIMES = Path("/proc/stat")
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

#: How the names of settings begin that slow or change fastreg, its peers or their threads.
SETTINGS = re.compile(
    r"(FASTREG|OPENBLAS|OMP|GOMP|KMP|MKL|BLIS|MALLOC|NUMBA|TORCH|TORCHINDUCTOR|ATEN|XLA|JAX)_"
    r"|NPY_DISABLE_CPU_FEATURES$|NPY_ENABLE_CPU_FEATURES$|NPROC$"
)

#: Shares beyond which a run says that it was disturbed: of the processors that others had, and of
#: a median floor between its quartiles.
DISTURBED = 0.05
WIDE = 0.15


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
    #: Vendor, name, family, model and stepping, as far as the system tells.
    processor: dict[str, str] | None = None
    compiler: str | None = None
    #: What the core does otherwise by processor, as it says it.
    policy: dict[str, Any] | None = None
    #: Of the environment: what slows or changes who takes part.
    settings: dict[str, str] | None = None
    #: The load average when the run began, and the shares of the processors which other processes
    #: and other guests of the host had meanwhile.
    load: float | None = None
    others: dict[str, float] | None = None

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
            processor=processor(),
            compiler=compiler(),
            policy=policy(),
            settings=settings(),
            load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
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

    def doubts(self, rows: Sequence[Row]) -> list[str]:
        """Return what may have changed the figures: settings, and others on the machine."""
        found = [f"set: {name}={text}" for name, text in (self.settings or {}).items()]
        others = {name: share for name, share in (self.others or {}).items() if share > DISTURBED}
        if others:
            shares = ", ".join(f"{name} {share:.0%}" for name, share in others.items())
            load = f" (load average {self.load} when the run began)" if self.load else ""
            found.append(f"busy: of the processors' time others had: {shares}{load}")
        spreads = [row.seconds(row.yardstick) for row in rows if row.yardstick in row.samples]
        if spreads and (width := median((s.high - s.low) / s.median for s in spreads)) > WIDE:
            what = "usual ways" if isinstance(rows[0].what, Work) else "bare loops"
            found.append(f"noisy: quartiles of the {what} {width:.0%} apart in the median")
        return found


class Watch:
    """What others do with the processors from here on."""

    def __init__(self) -> None:
        self._before = _cpu_seconds()

    def others(self) -> dict[str, float] | None:
        """Return the shares of other processes and of other guests (stolen) until now."""
        if self._before is None or (now := _cpu_seconds()) is None:
            return None
        total, busy, stolen, own = (b - a for a, b in zip(self._before, now, strict=True))
        if total <= 0:
            return None
        shares = {"processes": (busy - own) / total, "other guests": stolen / total}
        return {name: round(max(share, 0.0), 3) for name, share in shares.items()}


def _cpu_seconds() -> tuple[float, float, float, float] | None:
    """Return seconds of all processors: in all, at work, stolen; then those of this process."""
    fields = _read(CPU_TIMES).partition("\n")[0].split()[1:9]
    if len(fields) < 8 or not hasattr(os, "sysconf"):
        return None
    user, nice, system, idle, waiting, irq, soft_irq, stolen = (
        int(field) / os.sysconf("SC_CLK_TCK") for field in fields
    )
    busy = user + nice + system + irq + soft_irq
    return busy + idle + waiting + stolen, busy, stolen, sum(os.times()[:4])


def processor() -> dict[str, str]:
    """Return vendor, name, family, model and stepping, as far as the system tells."""
    names = {
        "vendor_id": "vendor",
        "model name": "name",
        "cpu family": "family",
        "model": "model",
        "stepping": "stepping",
    }
    lines = [line.partition(":") for line in _read(CPUS).partition("\n\n")[0].splitlines()]
    return {names[key.strip()]: text.strip() for key, _, text in lines if key.strip() in names}


def processor_name() -> str:
    """Return this processor and its cores as the name of a file."""
    found = processor()
    name = found.get("name") or _info.machine()["processor"]
    numbers = [f"{key}-{found[key]}" for key in ("family", "model") if key in found]
    cores = f"{_info.machine()['cores']}-cores"
    return re.sub(r"[^a-z0-9]+", "-", "-".join([name, *numbers, cores]).lower()).strip("-")


def compiler() -> str | None:
    """Return what has built the core."""
    core = _info.native_core()
    return None if core is None else str(core.build_info()["compiler"])


def policy() -> dict[str, Any] | None:
    """Return the core's policy; None where there is no core, or an older one."""
    ask = getattr(_info.native_core(), "policy", None)
    return None if ask is None else dict(ask())


def settings() -> dict[str, str]:
    """Return the settings of the environment that slow or change who takes part.

    Examples
    --------
    >>> import os
    >>> os.environ["OPENBLAS_CORETYPE"] = "Prescott"
    >>> settings()["OPENBLAS_CORETYPE"]
    'Prescott'
    >>> del os.environ["OPENBLAS_CORETYPE"]
    """
    names = (name for name in sorted(os.environ) if SETTINGS.match(name) or name in ALLOCATOR)
    return {name: os.environ[name] for name in names}


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
