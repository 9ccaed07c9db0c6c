"""CONTRIBUTING.md's map: what it names is there, and every folder is named."""

import re
from pathlib import PurePosixPath

import pytest
from interpreter import ROOT
from test_named import texts

PAGE = ROOT / "CONTRIBUTING.md"
MAPPED = ("csrc", "fastreg", "tests")


def blocks():
    """Return the map's blocks of lines."""
    section = re.search(r"^## Where things are$(.*?)^## ", PAGE.read_text("utf-8"), re.M | re.S)
    return [
        block.splitlines() for block in re.findall(r"^```\n(.*?)^```$", section[1], re.M | re.S)
    ]


def named(lines):
    """Return the paths that a block names, each with what it says of it.

    A line that is indented names what lies in the last folder; one that is indented to the column
    of descriptions goes on with the line before.
    """
    folder, found = "", {}
    for line in lines:
        indent, name, about = re.fullmatch(r"( *)(\S+) *(.*)", line).groups()
        if len(indent) > 4:
            continue
        if not indent:
            folder = name
            assert folder.endswith("/"), line
        found[folder + name if indent else name] = about
    return found


MAP = {path: about for block in blocks() for path, about in named(block).items()}


@pytest.mark.parametrize("path", MAP)
def test_it_is_there(path):
    found = list(ROOT.glob(path.rstrip("/")))
    assert found
    assert all(place.is_dir() == path.endswith("/") for place in found)


def test_every_folder_is_named():
    folders = {
        f"{folder}/"
        for name in texts()
        for folder in PurePosixPath(name).parents
        if folder.parts[:1] and folder.parts[0] in MAPPED
    }
    assert len(folders) > 20
    assert folders - set(MAP) == set()


def test_every_file_directly_in_the_package_is_named():
    files = {f"fastreg/{path.name}" for path in (ROOT / "fastreg").glob("*.py")}
    assert files - set(MAP) == set()


def test_it_fits_a_terminal():
    assert all(len(line) <= 80 for block in blocks() for line in block)


def test_lines_are_read():
    lines = ["a/b/      rooms", "    c.py    one,", "            two", "    *.h     three"]
    assert named(lines) == {"a/b/": "rooms", "a/b/c.py": "one,", "a/b/*.h": "three"}


def test_the_picture_is_plain_mermaid():
    """Nodes, each with a quoted text, then edges between them: what every version of it draws."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert page.count("\n") <= 120
    (picture,) = re.findall(r"^```mermaid\n(.*?)^```$", page, re.M | re.S)
    first, *lines = picture.splitlines()
    assert first == "flowchart TD"
    nodes = [re.fullmatch(r' {4}(\w+)(?:\["[^"]+"\]|\(\["[^"]+"\]\))', line) for line in lines]
    names = [node[1] for node in nodes if node]
    assert len(set(names)) == len(names)
    edges = [line for line, node in zip(lines, nodes, strict=True) if not node]
    ends = [re.fullmatch(r' {4}(\w+) (?:-- "[^"]+" )?--> (\w+)', edge).groups() for edge in edges]
    assert {name for pair in ends for name in pair} == set(names)
    assert not {"end", "graph", "subgraph", "class", "click", "style"} & set(names)
    for folder in re.findall(r"\bcsrc/\w+\b(?!\.)|\b_[a-z]+\b", picture):
        assert {f"{folder}/", f"fastreg/{folder}/", f"{folder}.*"} & set(MAP), folder


def test_modules_of_tests_have_names_of_their_own():
    """Pytest imports them by name alone: of two with one name the second is an error."""
    paths = [PurePosixPath(name) for name in texts() if name.startswith("tests/")]
    names = [path.name for path in paths if path.suffix == ".py" and path.stem != "conftest"]
    assert len(names) > 100
    assert sorted(names) == sorted(set(names))
