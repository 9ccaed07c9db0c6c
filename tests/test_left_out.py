"""What a run says of the tests that it leaves out."""

from collections import Counter

import left_out
import pytest
from interpreter import ROOT, runs


def test_a_run_without_frameworks_names_what_it_leaves_out():
    output = runs(f"""
        import sys
        sys.modules.update(torch=None, jax=None, keras=None)   # as if they were not installed
        import pytest
        folder = {str(ROOT / "tests")!r}
        pytest.main(["-q", "-c", {str(ROOT / "pyproject.toml")!r}, "-p", "no:cacheprovider",
                     folder + "/with_torch", folder + "/with_jax", folder + "/test_interop.py"])
    """)
    lines = output.splitlines()
    assert "    1  torch is not installed (whole files)" in lines
    assert (
        "without torch, jax, keras: tests/with_jax, tests/with_loops, tests/with_torch, 1 files "
        "elsewhere; everything: pip install -e '.[test-frameworks]' && python -m pytest" in lines
    )


def test_a_python_with_a_sitecustomize_of_its_own(tmp_path, monkeypatch):
    """As Debian's: tests/cpp has one too, for builds, and pytest would take them for one module."""
    (tmp_path / "sitecustomize.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    output = runs(f"""
        import pytest
        pytest.main(["-q", "-c", {str(ROOT / "pyproject.toml")!r}, "-p", "no:cacheprovider",
                     "--collect-only", {str(ROOT / "tests" / "cpp")!r}])
    """)
    assert "no tests collected" in output
    assert "error" not in output


@pytest.mark.parametrize(
    ("module", "needed"),
    [
        ("torch/attached.py", {"torch"}),
        ("_autodiff/jax/__init__.py", {"jax"}),
        ("_autodiff/dispatch.py", set()),
        ("_arrays/torch_shards.py", {"torch"}),
        ("_arrays/torch_arrays.py", set()),
        ("_norms/shared.py", {"torch"}),
        ("_norms/measuring.py", set()),
        ("keras", {"keras"}),
    ],
)
def test_doctests_are_left_out_where_the_module_cannot_be_imported(module, needed):
    assert left_out.imported_by(ROOT / "fastreg" / module) == needed
    assert left_out.imported_by(ROOT / "tests" / "with_torch") == set()


def test_nothing_is_said_where_nothing_is_missing(monkeypatch):
    monkeypatch.setattr(left_out, "missing_frameworks", lambda: [])
    assert left_out.frameworks_line(set(), Counter({"there is no CUDA device": 3})) == ""


def test_reasons_that_differ_in_their_words_are_one():
    class Report:
        def __init__(self, reason):
            self.longrepr = ("file.py", 1, f"Skipped: {reason}")

    reasons = {
        left_out.reason_of(Report(reason))
        for reason in (
            "could not import 'torch': No module named 'torch'",
            "could not import 'torch.distributed': No module named 'torch'",
            "torch is not installed: No module named 'torch'",
            "torch is not installed",
        )
    }
    assert reasons == {"torch is not installed"}
