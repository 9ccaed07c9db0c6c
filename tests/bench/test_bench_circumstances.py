"""What a record says of the machine: what the system tells, and nothing where it tells nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastreg.bench import circumstances


def test_caches_pages_and_allocator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("level", "2\n"), ("type", "Unified\n"), ("size", "1024K\n")):
        (tmp_path / "index2").mkdir(exist_ok=True)
        (tmp_path / "index2" / name).write_text(text)
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    monkeypatch.setattr(circumstances, "CACHES", tmp_path)
    monkeypatch.setattr(circumstances, "HUGE_PAGES", tmp_path / "enabled")
    monkeypatch.setenv("LD_PRELOAD", "libjemalloc.so")
    found = circumstances.memory()
    cache = {"level": "2", "type": "Unified", "size": "1024K", "shared_cpu_list": ""}
    assert found["caches"] == [cache]
    assert found["huge_pages"] == "madvise"
    assert found["allocator"]["LD_PRELOAD"] == "libjemalloc.so"


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circumstances, "GPUS", tmp_path)
    assert circumstances.gpus() == []
    (tmp_path / "0000:1b:00.0").mkdir()
    text = "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 26\n"
    (tmp_path / "0000:1b:00.0" / "information").write_text(text)
    assert circumstances.gpus() == ["NVIDIA H100 80GB HBM3"]


def test_what_the_system_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CACHES", "HUGE_PAGES", "GPUS"):
        monkeypatch.setattr(circumstances, name, tmp_path / "none")
    found = circumstances.memory()
    assert (found["caches"], found["huge_pages"]) == ([], None)
    assert circumstances.gpus() == []


def test_no_commit_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circumstances.fastreg, "__file__", str(tmp_path / "fastreg" / "x.py"))
    assert circumstances.commit() is None
