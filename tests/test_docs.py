"""Every Python block of README.md and docs/ runs, where what it needs is installed.

`page.py` says how the blocks of a page are run, and how a page says what they take for granted.
"""

import ast
import json
import os
import re
import subprocess
import sys

import page
import pytest
from interpreter import ROOT

from fastreg.__main__ import main

if sys.version_info >= (3, 11):
    import tomllib

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWN = [
    (path, block)
    for path in PAGES
    for block in page.blocks_of(path.read_text(encoding="utf-8"))
    if block.is_shown
]

_ran = {}


def outcome(path):
    """Return by line what became of a page's blocks, run once in a process of its own."""
    if path not in _ran:
        settings = {name: text for name, text in os.environ.items() if name[:8] != "FASTREG_"}
        settings["PYTHONPATH"] = os.pathsep.join([*filter(None, sys.path), str(ROOT)])
        result = subprocess.run(
            [sys.executable, "-W", "error", str(ROOT / "tests" / "page.py"), str(path)],
            env=settings,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        found = json.loads(result.stdout.splitlines()[-1])
        _ran[path] = {int(line): word for line, word in found.items()}
    return _ran[path]


@pytest.mark.parametrize(
    ("path", "block"),
    [
        pytest.param(path, block, id=f"{path.relative_to(ROOT)}:{block.line}")
        for path, block in SHOWN
    ],
)
def test_block_runs(path, block):
    ast.parse(block.code)  # also where it cannot run
    absent = [need for need in block.needs if not page.is_here(need)]
    if absent:
        pytest.skip(
            "there is no CUDA device" if absent == ["cuda"] else f"{absent[0]} is not installed"
        )
    became = outcome(path)
    if block.line not in became:
        line, failure = list(became.items())[-1]
        pytest.fail(
            f"the page has failed at line {line}: {failure.splitlines()[-1]}", pytrace=False
        )
    assert became[block.line] == page.RAN, became[block.line]


def test_every_fence_of_python_is_a_block():
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        assert "```py\n" not in text, path
        assert text.count("```python") == sum(owner == path for owner, _ in SHOWN), path


def test_a_page_stops_at_what_fails_and_says_where(tmp_path):
    source = tmp_path / "page.md"
    source.write_text(
        "# Title\n\n<!-- setup\na = 1\n-->\n\n```python\nb = a + 1\n```\n\n```python\n"
        "raise ValueError(b)\n```\n\n```python\nc = 3\n```\n"
    )
    became = outcome(source)
    assert list(became) == [3, 7, 11]
    assert became[3] == became[7] == page.RAN
    assert f'File "{source}", line 12' in became[11]
    assert became[11].splitlines()[-1] == "ValueError: 2"


def test_what_needs_a_missing_package_and_what_follows_is_not_run(tmp_path):
    source = tmp_path / "page.md"
    source.write_text(
        "```python\na = 1\n```\n\n<!-- setup (needs no_such_package) -->\n\n```python\n1 / 0\n```\n"
    )
    assert outcome(source) == {1: "ran", 5: "needs no_such_package", 7: "needs no_such_package"}


COMMANDS = [
    (path, line)
    for path in [*PAGES, ROOT / "CONTRIBUTING.md"]
    for fence in re.findall(
        r"^```sh\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    for line in fence.splitlines()
]


@pytest.mark.parametrize(("path", "line"), COMMANDS)
def test_what_a_command_names_is_there(path, line, capsys):
    """Which commands run is up to `.ci/run`: many take minutes, or need a network."""
    extras = re.findall(r"'\.\[(.*?)\]'", line)
    if extras and sys.version_info >= (3, 11):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for extra in ",".join(extras).split(","):
            assert extra in project["optional-dependencies"]
    for script in re.findall(r"python (\S+\.py)", line):
        assert (ROOT / script).is_file()
    presets = json.loads((ROOT / "CMakePresets.json").read_text(encoding="utf-8"))
    for kind, name in re.findall(r"cmake (--build )?--preset (\S+)", line):
        known = presets["buildPresets" if kind else "configurePresets"]
        assert name in [preset["name"] for preset in known]
    for words in re.findall(r"-m fastreg ([^#&|]*)", line):
        commands = ("info", "bench", "compare", "frameworks", "record", "page")
        named = [word for word in words.split() if word in commands]
        with pytest.raises(SystemExit) as ended:
            main([*named, "--help"])
        assert ended.value.code == 0
        options = re.findall(r"--\w[\w-]*", words)
        assert set(options) <= set(re.findall(r"--\w[\w-]*", capsys.readouterr().out))
