"""What is wrong with a site is found, by each kind of fault alone."""

from __future__ import annotations

from pathlib import Path

import check_site
import pytest

GOOD = {
    "README.html": '<h1 id="top">a</h1><a href="docs/b.html#there">b</a><img src="p.png">',
    "docs/b.html": '<h1 id="there">b</h1><a href="../README.html">a</a>'
    '<a href="https://example.org/">elsewhere</a><link rel="stylesheet" href="../s.css">',
    "s.css": 'a { background: url("data:image/png;base64,AA==") }',
    "p.png": "",
}


def faults(folder: Path, changes: dict[str, str]) -> list[str]:
    """Return what is found in that site with some of its files replaced."""
    for name, text in (GOOD | changes).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return check_site.faults_of_links(folder)[0]


def test_a_good_site_has_no_faults(tmp_path: Path) -> None:
    assert faults(tmp_path, {}) == []
    counts = check_site.faults_of_links(tmp_path)[1]
    assert counts == {"pages": 2, "links": 4, "anchors": 1, "loaded": 3, "links elsewhere": 1}


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("README.html", '<a href="c.html">', "README.html names c.html, which is not there"),
        ("README.html", '<a href="#no">', "README.html names #no, an anchor that is not there"),
        (
            "README.html",
            '<a href="docs/b.html#no">',
            "README.html names docs/b.html#no, an anchor that is not there",
        ),
        ("README.html", '<img src="q.png">', "README.html names q.png, which is not there"),
        (
            "README.html",
            '<script src="https://cdn.example.org/a.js"></script>',
            "README.html loads https://cdn.example.org/a.js",
        ),
        (
            "README.html",
            '<link rel="preconnect" href="//fonts.example.org">',
            "README.html loads //fonts.example.org",
        ),
        (
            "README.html",
            "<style>@import 'https://example.org/a.css';</style>",
            "README.html loads https://example.org/a.css",
        ),
        (
            "README.html",
            '<p style="background: url(http://example.org/a.png)">',
            "README.html loads http://example.org/a.png",
        ),
        (
            "s.css",
            "@font-face { src: url(https://example.org/f.woff) }",
            "s.css loads https://example.org/f.woff",
        ),
        (
            "p.svg",
            '<svg><image xlink:href="http://example.org/a.png"/></svg>',
            "p.svg loads http://example.org/a.png",
        ),
    ],
)
def test_each_kind_of_fault_is_found(tmp_path: Path, name: str, text: str, fault: str) -> None:
    assert faults(tmp_path, {name: text}) == [fault]


def test_an_index_without_a_page_or_a_word_is_found(tmp_path: Path) -> None:
    for name, text in GOOD.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "searchindex.js").write_text(
        'Search.setIndex({"docnames":["README"],"titleterms":{},"terms":{"clip":0}})',
        encoding="utf-8",
    )
    assert check_site.faults_of_search(tmp_path) == [
        "the search index lacks docs/b",
        "a search for 'proximal' does not find docs/sparsity",
        "a search for 'clipping' does not find docs/training_loops",
    ]
