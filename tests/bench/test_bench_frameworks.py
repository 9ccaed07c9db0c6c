"""The adapters' benchmark: all ways do the same work, and a run says what it measured."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastreg.__main__ import main
from fastreg.bench.circumstances import Circumstances
from fastreg.bench.frameworks import (
    base,
    known,
    with_jax,
    with_keras,
    with_norms,
    with_optimizers,
    with_torch,
)
from fastreg.bench.frameworks.base import Setting, Variant, measure
from fastreg.bench.frameworks.known import FRAMEWORKS
from fastreg.bench.frameworks.sizes import SIZES
from fastreg.bench.record import SCHEMA
from fastreg.bench.row import Row, Work
from fastreg.bench.table import comparisons

pytest.importorskip("rich")

TINY = SIZES["tiny"]


def is_installed(name: str) -> bool:
    return not FRAMEWORKS[name].missing()


def rows_of(module: Any) -> list[Row]:
    return [measure(setting, repeats=2) for setting in module.settings(TINY)]


def test_all_ways_of_torch_do_the_work() -> None:
    pytest.importorskip("torch")
    step, many, one = rows_of(with_torch)
    assert [row.blanks for row in (step, many, one)] == [{}, {}, {}]
    ways = "accumulate", "loss + value()", "before_step"
    assert {f"fastreg, {way}" for way in ways} <= set(step.samples)
    assert step.work.bare == "no penalty"
    assert "fastreg, accumulate" in many.samples
    assert "fastreg, reg(w)" in one.samples


def test_compiled_ways_of_torch_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **_: compile_(f, backend="aot_eager"))
    torch.compiler.reset()
    row = measure(with_torch.one_tensor(torch, replace(TINY, compiled=True)), repeats=2)
    assert row.blanks == {}
    assert {"plain, compiled", "fastreg, compiled"} <= set(row.samples)


def test_all_ways_of_norms_do_the_work() -> None:
    pytest.importorskip("torch")
    rows = rows_of(with_norms)
    assert [row.blanks for row in rows] == [{}] * 4
    for row in rows[::2]:
        assert {"read", "torch, foreach", "numpy.linalg.norm", "fastreg.norms"} <= set(row.samples)
    for row in rows[1::2]:
        assert set(row.samples) == {"read, then mul_", "torch, foreach", "fastreg"}


def test_all_ways_of_optimizers_do_the_work() -> None:
    pytest.importorskip("torch")
    rows = rows_of(with_optimizers)
    assert [row.blanks for row in rows] == [{}] * 13
    for row in rows:
        ways = {"floor", "torch, fused alone", "usual", "fastreg.optimizers"}
        if hasattr(import_module("fastreg.torch"), "AdamW"):
            ways.add("fastreg.torch")
        assert ways <= set(row.samples)
    assert any("bfloat16" in str(row.work) for row in rows)


def test_a_step_without_its_clip_is_a_blank(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_, **__: None)
    blanks = {str(row.work): row.blanks for row in rows_of(with_optimizers)}
    for what, found in blanks.items():
        assert bool(found) == ("clip of" in what), what


def test_all_ways_of_jax_do_the_work() -> None:
    pytest.importorskip("jax")
    (row,) = rows_of(with_jax)
    assert row.blanks == {}
    assert set(row.samples) == {"no penalty", "jax.numpy", "fastreg, reg(w)"}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
def test_all_ways_of_keras_do_the_work() -> None:
    if not any(is_installed(name) for name in ("keras-torch", "keras-jax")):
        pytest.skip("Keras, or its backend, is not installed")
    from fastreg.bench.peers.with_keras import _import_keras

    backend = _import_keras().backend.backend()
    (row,) = rows_of(with_keras)
    assert row.work.framework == f"keras-{backend}"
    assert row.blanks == {}
    assert "fastreg.keras, fused" in row.samples


# ---- what is not right is not timed


def variant(left_behind: float | Exception) -> Variant:
    def make() -> Callable[[], object]:
        if isinstance(left_behind, Exception):
            raise left_behind
        return lambda: None

    return Variant(make, lambda: None, lambda: [np.array([1.0, left_behind])])


def test_what_is_off_or_fails_is_a_blank() -> None:
    row = measure(
        Setting(
            Work("torch", "a step", usual="usual", bare="bare"),
            {
                "bare": variant(7.0),
                "usual": variant(2.0),
                "good": variant(2.0 + 1e-5),
                "off": variant(2.5),
                "not a number": variant(float("nan")),
                "fails": variant(RuntimeError("no compiler\nsee the manual")),
            },
        ),
        repeats=3,
    )
    assert set(row.samples) == {"bare", "usual", "good"}
    assert row.blanks == {
        "off": "what it computes is off by 0.2",
        "not a number": "what it computes is off by inf",
        "fails": "RuntimeError: no compiler see the manual",
    }


def test_a_check_that_cannot_fail_is_refused() -> None:
    variants = {"bare": variant(2.0 + 1e-5), "usual": variant(2.0)}
    with pytest.raises(ValueError, match="a step: bare leaves what usual leaves"):
        measure(Setting(Work("torch", "a step", usual="usual", bare="bare"), variants), repeats=1)


def test_what_is_added_is_compared_with_the_measure() -> None:
    samples = {
        "bare": [1.0, 2.0, 4.0],
        "usual": [5.0, 6.0, 8.0],
        "measure": [1.5, 2.0, 4.5],
        "ours": [1.75, 2.75, 4.5],
    }
    work = Work("torch", "a step", usual="usual", bare="bare", measure="measure")
    row = Row(work, samples)
    assert [row.of_measure(name) for name in samples] == [None, None, None, 1.5]
    assert comparisons([row]) == ["torch, ours: adds 1.50 times what measure adds"]
    changed = [replace(row, what=replace(work, **{name: None})) for name in ("measure", "bare")]
    assert comparisons(changed) == []
    nothing = replace(row, samples={**samples, "measure": samples["bare"]})
    assert comparisons([nothing]) == []


def test_shares_are_of_the_bare_step_turn_by_turn() -> None:
    samples = {"bare": [1.0, 2.0, 4.0], "usual": [2.0, 4.0, 8.0], "ours": [1.25, 2.5, 5.0]}
    work = Work("torch", "a step", usual="usual", bare="bare")
    row = Row(work, samples)
    added, of_usual = row.added("ours"), row.of_usual("ours")
    assert added is not None
    assert of_usual is not None
    assert (added.median, of_usual.median) == (0.25, 0.625)
    assert row.added("bare") is row.of_usual("bare") is row.of_usual("usual") is None
    assert replace(row, what=replace(work, bare=None)).added("ours") is None
    assert replace(row, what=replace(work, usual="fails")).of_usual("ours") is None


# ---- the run


def test_a_run_writes_what_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not is_installed("torch"):
        pytest.skip("torch is not installed")
    as_json, as_csv = tmp_path / "out.json", tmp_path / "out.csv"
    arguments = ["--frameworks", "torch", "--sizes", "tiny", "--repeats", "2"]
    files = ["--json", str(as_json), "--csv", str(as_csv)]
    assert main(["bench", "frameworks", *arguments, *files]) == 0
    out = capsys.readouterr().out
    assert "step of 2 x Linear(8), batch 4, fused SGD" in out
    assert "times the usual way" in out
    document = json.loads(as_json.read_text(encoding="utf-8"))
    assert document["schema"] == SCHEMA
    assert document["versions"]["torch"] == import_module("torch").__version__
    assert len(document["rows"]) == 3
    found = document["rows"][0]["variants"]["fastreg, before_step"]
    assert len(found["samples"]) == 2
    assert set(found["added"]) == {"median", "low", "high"}
    lines = list(csv.DictReader(as_csv.read_text(encoding="utf-8").splitlines()))
    assert len(lines) == sum(len(row["variants"]) for row in document["rows"])
    assert float(lines[1]["seconds"]) > 0


def test_versions_are_those_that_libraries_say_of_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of torch, what is installed may say 2.14.1 where the build is 2.14.1+cu130.
    monkeypatch.setitem(sys.modules, "built", SimpleNamespace(__version__="1.0+cu130"))
    assert Circumstances.here("", 1, {}, ["built"]).versions["built"] == "1.0+cu130"


def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(known, "find_spec", lambda name: None)
    assert main(["bench", "frameworks", "--sizes", "tiny"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no framework is installed, so there is nothing to measure" in captured.err
    for name, framework in FRAMEWORKS.items():
        assert f"{name}: python -m pip install {' '.join(framework.modules)}" in captured.err
    assert main(["bench", "frameworks", "--frameworks", "keras-jax"]) == 2
    said = capsys.readouterr().err
    assert "--frameworks has keras-jax, but not installed: keras, jax" in said
    assert "python -m pip install keras jax" in said


def test_some_that_are_missing_are_noted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    present = known.Framework((), "with_nothing")
    monkeypatch.setattr(known, "find_spec", lambda name: None)
    monkeypatch.setitem(FRAMEWORKS, "torch", present)
    monkeypatch.setattr("fastreg.bench.cli.rows_of", lambda *_: iter(()))
    assert main(["bench", "frameworks", "--sizes", "tiny"]) == 1
    captured = capsys.readouterr()
    assert "jax is left out: not installed: jax" in captured.err
    assert "nothing was measured" in captured.err
    assert captured.out == ""


def test_a_process_that_fails_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\nexit 1\n")
    failing.chmod(0o755)
    broken = known.Framework((), "with_nothing")
    monkeypatch.setitem(FRAMEWORKS, "torch", broken)
    monkeypatch.setattr("sys.executable", str(failing))
    assert main(["bench", "frameworks", "--frameworks", "torch", "--sizes", "tiny"]) == 1
    assert "torch is left out: its process ended with status 1" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "frameworks", "--help"])
    assert stop.value.code == 0
    # The line is folded, also at hyphens.
    said = "".join(capsys.readouterr().out.split())
    assert "someoftorch,norms,optimizers,jax,keras-torch,keras-jax" in said


def test_the_distance_of_nothing_is_none() -> None:
    assert base.distance([np.zeros(0)], [np.zeros(0)]) == 0.0
