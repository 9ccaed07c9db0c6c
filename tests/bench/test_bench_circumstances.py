"""What a record says of the machine: what the system tells, and nothing where it tells nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fastreg.bench import circumstances
from fastreg.bench.cases import Case
from fastreg.bench.row import Row


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


def test_settings_that_change_a_peer_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(circumstances.settings()):
        monkeypatch.delenv(name)
    assert circumstances.settings() == {}
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    found = circumstances.Circumstances.here("", 1, {}, [])
    assert found.settings == {"OMP_WAIT_POLICY": "passive", "OPENBLAS_CORETYPE": "Prescott"}
    assert found.doubts([])[:2] == [
        "set: OMP_WAIT_POLICY=passive",
        "set: OPENBLAS_CORETYPE=Prescott",
    ]


def test_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n"
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{text}\nprocessor\t: 1\nmodel\t\t: 18\n")
    monkeypatch.setattr(circumstances, "CPUS", tmp_path / "cpuinfo")
    assert circumstances.processor() == {
        "vendor": "AuthenticAMD",
        "family": "25",
        "model": "17",
        "name": "AMD EPYC",
    }
    assert circumstances.processor_name().startswith("amd-epyc-family-25-model-17-")


def test_what_others_did_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = tmp_path / "stat"
    times.write_text("cpu 100 0 100 1000 0 0 0 0 0 0\ncpu0 1\n")
    monkeypatch.setattr(circumstances, "CPU_TIMES", times)
    monkeypatch.setattr(circumstances.os, "times", lambda: (0.0,) * 5)
    watch = circumstances.Watch()
    times.write_text("cpu 200 0 100 1150 0 0 0 250 0 0\ncpu0 1\n")
    assert watch.others() == {"processes": 0.2, "other guests": 0.5}
    found = circumstances.Circumstances.here("", 1, {}, [])
    (doubt,) = replace(found, settings={}, load=1.5, others=watch.others()).doubts([])
    assert doubt == (
        "busy: of the processors' time others had: processes 20%, other guests 50% "
        "(load average 1.5 when the run began)"
    )
    times.unlink()
    assert circumstances.Watch().others() is None


def test_wide_floors_are_told() -> None:
    found = replace(circumstances.Circumstances.here("", 1, {}, []), settings={})
    case = Case("f32", "L1", "value", 64)
    steady = Row(case, {"floor": [1.0, 1.0, 1.0]})
    wide = Row(case, {"floor": [0.5, 1.0, 1.5]})
    assert found.doubts([steady]) == []
    assert found.doubts([wide]) == ["noisy: quartiles of the bare loops 50% apart in the median"]


def test_the_policy_is_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    core = circumstances._info.native_core()
    if core is not None:
        assert circumstances.policy() == core.policy()
    monkeypatch.setattr(circumstances._info, "native_core", lambda: None)
    assert circumstances.policy() is None
