"""``python -m fastreg info``: the facts, as text and as JSON, without importing a framework."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fastreg
from fastreg import _info
from fastreg.__main__ import main
from fastreg._engine import backend


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_text_says_what_runs() -> None:
    done = run("-m", "fastreg", "info")
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"fastreg           {fastreg.__version__}, in")
    # The second, unless the package's folder has a name so long that it is wrapped.
    second = next(line for line in lines[1:] if not line.startswith(" "))
    assert second.startswith(f"backend           {backend.name}: ")
    core = _info.native_core()
    reason = "not built: there is no compiled core" if core is None else core.cuda_state()[1]
    cuda = f"not available: {reason}" if reason else "available"
    assert f"CUDA              {cuda}" in lines or len(cuda) > 62
    assert " ".join(f"CUDA {cuda}".split()) in " ".join(done.stdout.split())
    assert f"  numpy           {np.__version__}: array struct, no copy" in lines


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = [sys.executable, "-m", "fastreg", "info"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_json_has_the_same_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["fastreg"]["version"] == fastreg.__version__
    assert facts["fastreg"]["backend"] == backend.name
    assert facts["threads"] == fastreg.get_num_threads()
    assert facts["instruction_sets"]["chosen"] == fastreg.get_instruction_set()
    core = _info.native_core()
    if core is None:
        reason = "not built: there is no compiled core"
        assert facts["cuda"] == {"available": False, "reason": reason}
    else:
        available, reason, devices = core.cuda_state()
        expected = {"available": available, "reason": reason or None, "devices": devices}
        assert facts["cuda"] == expected
        assert available is (reason == "") is (devices > 0)
    assert facts["machine"]["cores"] >= 1
    assert facts["frameworks"]["numpy"]["version"] == np.__version__
    assert facts["clash"] is None


def test_imports_no_framework_and_not_rich() -> None:
    check = (
        "import sys; from fastreg.__main__ import main; main(['info']);"
        "print(sorted({'torch', 'jax', 'keras', 'rich', 'matplotlib', 'ml_dtypes'}"
        " & set(sys.modules)))"
    )
    done = run("-c", check)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_says_which_backend_was_asked_for() -> None:
    done = run("-m", "fastreg", "info", FASTREG_BACKEND="numpy")
    assert "backend           numpy: asked for by FASTREG_BACKEND\n" in done.stdout


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("FASTREG_BACKEND", "'numpy', 'native'"),
        ("FASTREG_ISA", "'portable', "),
        ("FASTREG_POLICY", "'default', "),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(name: str, choices: str) -> None:
    done = run("-m", "fastreg", "info", **{name: "typo"})
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"python -m fastreg: error: the environment variable {name} must be ")
    assert choices in line
    assert line.endswith(", not 'typo'")


@pytest.mark.skipif(_info.native_core() is None, reason="needs the compiled core")
def test_core_reports_its_build() -> None:
    facts = _info.gather()
    assert set(facts["build"]) >= {"compiler", "build_type", "cxx_standard"}
    sets = facts["instruction_sets"]
    assert "portable" in sets["compiled"]
    assert set(sets["found"]) <= set(sets["compiled"])
    assert set(sets["never_run_here"]) == set(sets["compiled"]) - set(sets["found"])


@pytest.mark.skipif(_info.native_core() is None, reason="needs the compiled core")
def test_says_which_policy_and_why() -> None:
    facts = json.loads(run("-m", "fastreg", "info", "--json", FASTREG_POLICY="").stdout)["policy"]
    assert facts["forced"] is False
    assert facts["reason"].startswith(("measured on this family: ", "the default: "))
    text = run("-m", "fastreg", "info", FASTREG_POLICY="near").stdout
    assert "\npolicy            near: forced by FASTREG_POLICY\n" in text
    assert f"L2 {facts['l2_bytes'] // 1024} KiB, L3 {facts['l3_bytes'] // 1024} KiB" in text
    assert f"{'':18}within L2: near to read, near to write\n" in text
    assert f"{'':18}beyond: near to read, near to write\n" in text


def test_names_what_was_compiled_but_cannot_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    core = SimpleNamespace(
        compiled_instruction_sets=lambda: ("portable", "avx2", "avx512"),
        torch_threads=lambda: ("own", 1, ""),
        instruction_sets=lambda: ("portable", "avx2"),
        policy=lambda: {
            "name": "default",
            "reason": "the default: a processor that does not name its family was not measured",
            "l2_bytes": 2**20,
            "l3_bytes": 2**25,
            "variants": {"beyond": ("near", "plain")},
        },
        cuda_state=lambda: (False, "there is no CUDA device", 0),
        build_info=lambda: {
            "compiler": "GCC 12.2",
            "build_type": "Release",
            "cxx_standard": "202002",
        },
    )
    monkeypatch.setattr(_info, "native_core", lambda: core)
    text = _info.render(_info.gather())
    assert "compiler          GCC 12.2, C++20, Release" in text
    assert "found     portable, avx2\n" in text
    assert "default: the default: a processor that does not name its" in text
    assert "L2 1024 KiB, L3 32768 KiB counted on\n" in text
    assert "beyond: near to read, plain to write\n" in text
    assert "never run here, as this processor lacks it: avx512" in text


def test_still_answers_where_the_core_asked_for_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_info, "native_core", lambda: None)
    monkeypatch.setattr(backend, "name", "native")
    monkeypatch.setattr(backend, "reason", "no such file")
    text = " ".join(_info.render(_info.gather()).split())
    assert "asked for by FASTREG_BACKEND, but the compiled core is not there: no such file" in text
    assert "threads none" in text
    assert "policy none: there is no compiled core" in text


def test_long_reasons_go_on_in_further_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = _info.gather()
    library = "/usr/lib/python3/site-packages/fastreg/" + "x" * 80 + ".so"
    words = "the library of the CUDA backend cannot be opened: " * 3
    facts["cuda"] = {"available": False, "reason": words + library, "devices": 0}
    facts["fastreg"]["location"] = "/fastreg"
    facts["machine"]["processor"] = "processor"
    text = _info.render(facts)
    lines = text.splitlines()
    assert [line for line in lines if len(line) > 80] == [" " * 18 + library]
    assert f"CUDA not available: {words}{library}" in " ".join(text.split())
    (first,) = (place for place, line in enumerate(lines) if line.startswith("CUDA "))
    assert lines[first + 1].startswith(" " * 18 + "opened: ") or lines[first + 1][18] != " "


def test_a_checkout_that_shadows_an_installed_copy_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Installed:
        version = "1.0"

        @staticmethod
        def locate_file(name: str) -> Path:
            return tmp_path / name

    monkeypatch.setattr(metadata, "distribution", lambda name: Installed)
    assert _info.shadowed() is None  # an editable installation
    (tmp_path / "fastreg").mkdir()
    (tmp_path / "fastreg" / "__init__.py").touch()
    assert _info.gather()["fastreg"]["shadowed"] == str(tmp_path / "fastreg")
    text = " ".join(_info.render(_info.gather()).split())
    assert f"instead of the copy that is installed in {tmp_path / 'fastreg'}, because" in text
    monkeypatch.setattr(
        Installed, "locate_file", lambda name: Path(str(fastreg.__file__)), raising=True
    )
    assert _info.shadowed() is None


def test_states_the_name_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "1.2")
    clash = _info.name_clash()
    assert clash is not None
    assert "the distribution fastreg 1.2" in clash
    assert "python -m pip uninstall fastreg`" in clash
    assert "fastreg-kernels" in clash


def test_version_of_a_distribution_of_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_info, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"cupy": ["numpy"]})
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    assert _info.frameworks()["cupy"]["version"] == metadata.version("numpy")


def test_adapters_are_there_with_their_frameworks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_info, "version", lambda name: "3.15" if name == "keras" else None)
    facts = _info.gather()
    assert facts["adapters"] == {
        "fastreg.torch": False,
        "fastreg.jax": False,
        "fastreg.keras": True,
    }
    lines = _info.render(facts).splitlines()
    assert "  fastreg.torch   needs torch" in lines
    assert "  fastreg.keras   found" in lines


def test_version_and_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"fastreg {fastreg.__version__}\n"
    with pytest.raises(SystemExit) as stop:
        main(["typo"])
    assert stop.value.code == 2
    assert "info, bench" in capsys.readouterr().err.replace("'", "")
