"""How Sphinx makes the site: strictly, offline, from pages that GitHub shows too.

Contract
--------
- The source folder is the root of the repository, so that each link between pages is right on
  GitHub as on the site, and no text is copied. README.md is the first page.
- docs/README.md is the navigation: each of its headings with a list of links is a part of it.
- Nothing is loaded from elsewhere: no fonts, no scripts, and pictures of Mermaid are drawn here.
- The API reference imports PyTorch, JAX and Keras: where one is missing the build fails. (Stand-ins
  for them were tried, and end in warnings.)
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

project = "fastreg"
author = "The fastreg authors"
project_copyright = author
_project_file = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
release = version = re.search(r'^version = "(.+)"$', _project_file, re.M)[1]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.graphviz"]
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/*.md",
    "docs/api/*.rst",
    "csrc/README.md",
    "tests/README.md",
]
exclude_patterns = ["build", "**/.*"]

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["site.css", "site.js"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
graphviz_output_format = "svg"

myst_heading_anchors = 6  # as GitHub makes them
myst_links_external_new_tab = False
nitpicky = True  # a role that names nothing is an error
default_role = "code"
add_module_names = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # docstrings have the types, in words that fit every framework
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Contract", "Strengths"]


def navigation() -> str:
    """Return docs/README.md's lists of links as tables of contents."""
    found = []
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for part in re.split(r"^## ", text, flags=re.M)[1:]:
        caption, _, rest = part.partition("\n")
        pages = re.findall(r"^- \[(.+?)\]\((.+?)\)", rest, re.M)
        lines = ["```{toctree}", ":hidden:", f":caption: {caption}", ""]
        for title, page in pages:
            name = os.path.relpath(ROOT / "docs" / page, ROOT).rpartition(".")[0]
            lines.append(f"{title} <{'self' if name == root_doc else '/' + name}>")
        found.append("\n".join([*lines, "```"]))
    return "\n\n".join(found)


def graph_of(picture: str) -> str:
    """Return a flowchart of Mermaid (nodes, quoted, then edges) in Graphviz's language."""
    lines = [
        "digraph {",
        'bgcolor=transparent; node [shape=box style="rounded,filled" fillcolor="#eef3fb"'
        ' color="#5b7db1" fontname="sans-serif" fontsize=12]; edge [color="#7a8699"'
        ' fontcolor="#7a8699" fontname="sans-serif" fontsize=11];',
    ]
    for line in picture.splitlines()[1:]:
        if node := re.fullmatch(r' *(\w+)[(\[]+"(.+)"[)\]]+', line):
            lines.append(f'{node[1]} [label="{node[2]}"];')
        elif edge := re.fullmatch(r' *(\w+) (?:-- "(.+)" )?--> (\w+)', line):
            lines.append(f'{edge[1]} -> {edge[3]} [label=" {edge[2] or ""} "];')
        else:
            raise ValueError(f"a line of Mermaid that cannot be drawn: {line!r}")
    return "\n".join([*lines, "}"])


def prepare(app: Any, docname: str, source: list[str]) -> None:
    """Add the navigation to the first page, and draw Mermaid's pictures."""
    if docname == root_doc:
        source[0] += "\n\n" + navigation() + "\n"
    if docname == "docs/README":
        source[0] = "---\norphan: true\n---\n" + source[0]
    source[0] = re.sub(
        r"^```mermaid\n(.*?)^```$",
        lambda match: "```{graphviz}\n" + graph_of(match[1]) + "\n```",
        source[0],
        flags=re.M | re.S,
    )


def begin(app: Any, exception: Exception | None) -> None:
    """Write index.html, which servers and people look for, to lead to the first page."""
    if exception is None and app.builder.name == "html":
        Path(app.outdir, "index.html").write_text(
            f"<!doctype html><title>{project}</title>"
            f'<meta http-equiv="refresh" content="0; url={root_doc}.html">'
            f'<a href="{root_doc}.html">{project}</a>\n',
            encoding="utf-8",
        )


def setup(app: Any) -> None:
    """Connect this file to Sphinx."""
    app.connect("source-read", prepare)
    app.connect("build-finished", begin)
