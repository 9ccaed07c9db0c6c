"""Checks the built site, as a program: ``check_site.py build/docs``.

Contract
--------
- Every link within the site leads to a file that is there, and to an anchor that is there.
- No page, style sheet or drawing names anything on another host that a browser would load; links to
  other hosts are counted, and not followed.  What scripts load is for ``browse_site.py`` to see.
- The search index lies in the site, has every page, and finds words where they are.
- Every public name of the package is in the API reference.
- Printed are the figures that docs/reliability.md has, or every fault with its page; exit status 1.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# A word that a user would type, its stem in the index, and a page that has to be among the answers.
SEARCHES = [("proximal", "proxim", "docs/sparsity"), ("clipping", "clip", "docs/training_loops")]

# What a link element names without loading it.
NOT_LOADED = {"author", "canonical", "index", "license", "next", "prev", "search", "top"}
_STYLE_URL = re.compile(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""")


@dataclass
class Page:
    """What a page of HTML, or a drawing, has: anchors, links, and what a browser loads for it."""

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        page = self.page
        page.anchors |= {known[name] for name in ("id", "name") if name in known and tag != "meta"}
        if tag in ("a", "area") and "href" in known:
            page.links.append(known["href"])
        elif tag == "link" and set(known.get("rel", "").split()) <= NOT_LOADED:
            page.links.append(known.get("href", ""))
        elif tag in ("link", "image", "use"):
            page.loaded += [known[name] for name in ("href", "xlink:href") if name in known]
        page.loaded += [known[name] for name in ("src", "data", "poster") if name in known]
        page.loaded += [part.split()[0] for part in known.get("srcset", "").split(",") if part]
        page.loaded += _urls(known.get("style", ""))
        self._in_style = tag == "style"

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.page.loaded += _urls(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False


def _urls(style: str) -> list[str]:
    return [first or second for first, second in _STYLE_URL.findall(style)]


def read(path: Path) -> Page:
    """Return what a page, drawing or style sheet has."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        return Page(loaded=_urls(text))
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader.page


def is_elsewhere(url: str) -> bool:
    """Return whether a URL names another host; "data:" carries what it names."""
    parts = urlsplit(url)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


def faults_of_links(site: Path) -> tuple[list[str], dict[str, int]]:
    """Return what is wrong with links and with what is loaded, and how many there are of each."""
    files = sorted(path for path in site.rglob("*") if path.suffix in (".html", ".svg", ".css"))
    pages = {path: read(path) for path in files}
    faults: list[str] = []
    counts = {"pages": 0, "links": 0, "anchors": 0, "loaded": 0, "links elsewhere": 0}
    for path, page in pages.items():
        where = path.relative_to(site)
        counts["pages"] += path.suffix == ".html"
        for url in page.loaded:
            if is_elsewhere(url):
                faults.append(f"{where} loads {url}")
        counts["loaded"] += len(page.loaded)
        for url in [*page.links, *page.loaded]:
            if is_elsewhere(url):
                counts["links elsewhere"] += 1
                continue
            parts = urlsplit(url)
            if parts.scheme == "data":
                continue
            counts["links"] += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                faults.append(f"{where} names {url}, which is not there")
            elif parts.fragment and target.suffix == ".html":
                counts["anchors"] += 1
                if unquote(parts.fragment) not in pages[target].anchors:
                    faults.append(f"{where} names {url}, an anchor that is not there")
    return faults, counts


def faults_of_search(site: Path) -> list[str]:
    """Return what is wrong with the search index."""
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    names = index["docnames"]
    made = {"genindex", "py-modindex", "search", "index"}
    pages = {str(path.relative_to(site).with_suffix("")) for path in site.rglob("*.html")} - made
    faults = [f"the search index lacks {name}" for name in sorted(pages - set(names))]
    for word, stem, wanted in SEARCHES:
        answers = []
        for part in ("titleterms", "terms"):
            found = index[part].get(stem, [])
            answers += [found] if isinstance(found, int) else found
        if wanted not in [names[number] for number in answers]:
            faults.append(f"a search for {word!r} does not find {wanted}")
    return faults


def faults_of_reference(site: Path) -> tuple[list[str], int]:
    """Return which public names the API reference lacks, and how many there are."""
    import fastreg

    anchors = set().union(*(read(path).anchors for path in (site / "docs" / "api").glob("*.html")))
    modules = ["fastreg"] + [
        f"fastreg.{module.name}"
        for module in pkgutil.iter_modules(fastreg.__path__)
        if not module.name.startswith("_") and module.name != "bench"
    ]
    names = [
        f"{module}.{name}" for module in modules for name in importlib.import_module(module).__all__
    ]
    missing = [
        f"the API reference lacks {name}"
        for name in names
        if name not in anchors and f"module-{name}" not in anchors and name not in modules
    ]
    return missing, len(names)


def main(site: Path) -> int:
    """Check a site; return the exit status."""
    faults, counts = faults_of_links(site)
    faults += faults_of_search(site)
    missing, counts["public names"] = faults_of_reference(site)
    print(*faults, *missing, sep="\n", end="\n" if faults or missing else "")
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    return 1 if faults or missing else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
