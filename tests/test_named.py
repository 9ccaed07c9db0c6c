"""What documents and comments name is there: files of the repository, modules, public names.

Not in CHANGELOG.md, which tells of the past.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import PurePosixPath

import pytest
from interpreter import ROOT
from left_out import missing_frameworks

# A path from the root, with a suffix: in prose, comments, docstrings and strings alike.
FILE = re.compile(
    r"(?<![\w/.-])(?:fastreg|csrc|tests|docs|examples|cmake|\.ci)/[\w./*-]*[\w*]"
    r"\.(?:py|pyi|cpp|h|inl|cu|cuh|md|json|cmake|txt)\b"
)
# A file by its name alone: in documents, where it is one of the repository's.
BARE = re.compile(r"`(\w+\.(?:py|cpp|h|inl|cu|cuh|cmake))`")
PRIVATE = re.compile(r"\bfastreg((?:\._[a-z]\w*)(?:\.\w+)?)")
PUBLIC = re.compile(r"\bfastreg(?:\.[A-Za-z]\w*)+")

# test_house.py makes packages up; `bench compare` measures builds that have another module.
MADE_UP = {"tests/test_house.py", "tests/test_named.py"}
OLDER = {"._backend"}

# What people find that are no developers here: names of private modules may change.
USERS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
USERS = [name for name in USERS if name != "docs/architecture.md"]


OTHERS = (".bin", ".json", ".keras", ".npz", ".png", ".pt2")


def texts():
    """Return the texts of the repository by name."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no checkout of git")
    found = {}
    for name in listed.stdout.splitlines():
        suffix = PurePosixPath(name).suffix
        if (ROOT / name).is_file() and suffix not in OTHERS:
            found[name] = (ROOT / name).read_text(encoding="utf-8")
    return found


def is_module(dotted):
    """Return whether ``._private.name`` is a module, or something in one, as far as files tell."""
    first, *rest = dotted[1:].split(".")
    place = ROOT / "fastreg" / first
    if not place.is_dir() or not rest:
        return place.is_dir() or place.with_suffix(".py").exists() or first == "_core"
    inner = place / rest[0]
    init = (place / "__init__.py").read_text(encoding="utf-8")
    return inner.is_dir() or inner.with_suffix(".py").exists() or f"def {rest[0]}" in init


def unknown(name, text, bare):
    """Return what a text names and is not there, by line."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        names = [file for file in FILE.findall(line) if not list(ROOT.glob(file))]
        if name.endswith(".md"):
            names += [file for file in BARE.findall(line) if file not in bare]
        names += [
            f"fastreg{module}"
            for module in PRIVATE.findall(line)
            if module not in OLDER and not is_module(module)
        ]
        found += [f"{name}:{number} names {missing}" for missing in names]
    return found


def test_files_and_modules_are_there():
    all_texts = texts()
    bare = {PurePosixPath(name).name for name in all_texts}
    found = []
    for name, text in all_texts.items():
        if name not in MADE_UP and name != "CHANGELOG.md":
            found += unknown(name, text, bare)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("see `csrc/plan.cpp`, tests/page.py and fastreg/penalties/*.py", []),
        ("see (fastreg/_nowhere.py)", ["fastreg/_nowhere.py"]),
        ("# tests/with_none/test_*.py has more", ["tests/with_none/test_*.py"]),
        ("`plan.cpp`, `planned.cpp`", ["planned.cpp"]),
        ("fastreg._engine.backend.evaluate_one, fastreg._core.pool", []),
        (
            "fastreg._engine.nothing, fastreg._adapters.of",
            ["fastreg._engine.nothing", "fastreg._adapters.of"],
        ),
        ("fastreg._adapters.of", ["fastreg._adapters.of"]),
    ],
)
def test_what_is_not_there_is_found(line, missing):
    found = unknown("page.md", line, {"plan.cpp"})
    assert found == [f"page.md:1 names {name}" for name in missing]


def test_documents_for_users_name_no_private_module():
    for name in USERS:
        assert not PRIVATE.findall((ROOT / name).read_text(encoding="utf-8")), name


_RESOLVE = """
import importlib, json, sys
missing = []
for name in json.loads(sys.argv[1]):
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
            break
        except ModuleNotFoundError as error:
            if not error.name.startswith("fastreg"):
                raise
    for part in parts[count:]:
        found = getattr(found, part, missing)
    if found is missing:
        missing.append(name)
print(json.dumps(missing))
"""


def test_public_names_are_there():
    absent = tuple(f"fastreg.{framework}" for framework in missing_frameworks())
    if "fastreg.keras" not in absent and {"fastreg.torch", "fastreg.jax"} <= set(absent):
        absent += ("fastreg.keras",)  # which runs on one of the two
    names = {
        name
        for page in USERS
        for name in PUBLIC.findall((ROOT / page).read_text(encoding="utf-8"))
        if not name.startswith(absent)
    }
    assert {"fastreg.attach", "fastreg.regularizers.L1L2"} & names
    keras_on = "torch" if "fastreg.torch" not in absent else "jax"
    settings = {name: text for name, text in os.environ.items() if name[:8] != "FASTREG_"}
    path = os.pathsep.join([*filter(None, sys.path), str(ROOT)])
    result = subprocess.run(
        [sys.executable, "-c", _RESOLVE, json.dumps(sorted(names))],
        env=settings | {"PYTHONPATH": path, "KERAS_BACKEND": keras_on},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == []
