"""Runs the Python blocks of one page of the documentation, as a program: ``page.py docs/usage.md``.

Contract
--------
- A page is one program: its blocks run in order and share their names. Line numbers in tracebacks
  are those of the page.
- A comment ``<!-- setup`` in a line of its own, up to ``-->``, is a block that readers do not see:
  what a block takes for granted, such as a model, or what it has to come to.
- ``<!-- setup (needs torch, jax) -->``, with code or without, names packages without which neither
  it nor what follows on the page can run, up to ``<!-- end of needs -->``. ``cuda`` stands for a
  CUDA device.
- Printed is one JSON object: by line, "ran", "needs ...", or a traceback, with which the page ends.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

RAN = "ran"
_BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```$"
    r"|^<!-- setup(?: \(needs (?P<needs>[\w, ]+)\))?(?: -->$|\n(?P<hidden>.*?)^-->$)"
    r"|^(?P<end><!-- end of needs -->)$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block: the line of its fence, whether readers see it, its code, and what it needs."""

    line: int
    is_shown: bool
    code: str
    needs: tuple[str, ...]


def blocks_of(text: str) -> list[Block]:
    """Return the blocks of a page in order; needs are those of the blocks up to and with it."""
    blocks = []
    needs: tuple[str, ...] = ()
    for match in _BLOCK.finditer(text):
        if match["end"]:
            needs = ()
            continue
        needs += tuple(name.strip() for name in (match["needs"] or "").split(",") if name.strip())
        code = match["code"] if match["code"] is not None else match["hidden"] or ""
        line = text.count("\n", 0, match.start()) + 1
        blocks.append(Block(line, match["code"] is not None, code, needs))
    return blocks


def is_here(need: str) -> bool:
    """Return whether a package is installed, or there is a CUDA device."""
    if need == "cuda":
        from fastreg import _info

        return bool(_info.gather()["cuda"]["available"])
    return find_spec(need) is not None


def run(path: Path) -> dict[int, str]:
    """Run a page; return what became of each block, by line."""
    blocks = blocks_of(path.read_text(encoding="utf-8"))
    here = {need: is_here(need) for block in blocks for need in block.needs}
    # A module that can be imported by name, for what is pickled or looks for its annotations.
    namespace: dict[str, Any] = vars(sys.modules["__main__"])
    found: dict[int, str] = {}
    for block in blocks:
        absent = [need for need in block.needs if not here[need]]
        if absent:
            found[block.line] = f"needs {absent[0]}"
            continue
        try:
            code = compile("\n" * block.line + block.code, str(path), "exec")
            exec(code, namespace)
        except BaseException:
            found[block.line] = traceback.format_exc()
            break
        found[block.line] = RAN
    return found


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]))))
