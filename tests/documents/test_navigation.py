"""Every page is in docs/README.md, the navigation of the site, under one heading."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAVIGATION = ROOT / "docs" / "README.md"


def listed() -> list[Path]:
    """Return the pages of the navigation, in order."""
    text = NAVIGATION.read_text(encoding="utf-8")
    return [
        (NAVIGATION.parent / link).resolve()
        for link in re.findall(r"^- \[.+?\]\((.+?)\)$", text, re.M)
    ]


def test_every_page_is_listed_once() -> None:
    pages = [
        path for pattern in ("*.md", "docs/*.md", "docs/api/*.rst") for path in ROOT.glob(pattern)
    ]
    assert len(pages) > 30
    assert sorted(listed()) == sorted(
        {*pages, ROOT / "csrc" / "README.md", ROOT / "tests" / "README.md"} - {NAVIGATION}
    )


def test_every_public_module_has_a_page_of_the_reference() -> None:
    text = "".join(path.read_text("utf-8") for path in (ROOT / "docs" / "api").glob("*.rst"))
    documented = set(re.findall(r"^\.\. automodule:: (\S+)", text, re.M))
    package = ROOT / "fastreg"
    public = {
        f"fastreg.{path.stem}"
        for path in package.iterdir()
        if path.name[0] != "_" and (path.suffix == ".py" or (path / "__init__.py").exists())
    }
    # The benchmark is a command, and fastreg.models one name that the page of the package has.
    assert public - {"fastreg.bench", "fastreg.models"} <= documented
