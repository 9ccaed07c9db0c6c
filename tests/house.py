"""The shape of the package, in figures: ``python tests/house.py``, for any checkout by ``--at``.

- **Modules** are the Python files of ``fastreg``; a **unit** is a folder or a file directly in it.
- An **import** counts once for a pair of modules, wherever it is written: at the top, in a function
  (then it is lazy), or as a string that names a module ("fastreg.jax.functions", with or without
  ":name" at its end). What stands under ``if TYPE_CHECKING:`` does not count: it never runs.
- A **circle** is a set of modules each of which imports the others in the end. An import from
  another folder runs that folder's ``__init__`` too, which counts here ("by files" it does not).
- **Floors** are an order of units from low to high. Those that are wanted are ``FLOORS``; an import
  that runs up goes to a higher one, or from one unit of a floor to another. Those that a tree has
  by itself follow from its imports: each unit, or circle of units, is above all that it imports.
- Lines of the package are those of its .py files without ``bench``.
- ``--flows`` counts calls, see house_flows.py.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]

FLOORS: tuple[tuple[str, ...], ...] = (
    ("_base",),
    ("_arrays",),
    ("_engine",),
    ("_autodiff",),
    ("regularizers",),
    ("penalties",),
    ("_norms",),
    ("optimizers",),
    ("torch", "jax", "keras", "layers"),
    ("cuda", "backend", "models"),
    ("__init__",),
    ("_info",),
    ("bench",),
    ("__main__",),
)
"""The wanted floors, from low to high."""

COMPILED = "fastreg._core"
"""No Python module: below all floors, and it imports nothing of the package."""

NO_IMPORTS = {("fastreg.layers.storage", "fastreg.layers")}
"""Modules with strings that name a module and mean something else: here the format of a file."""

Graph = dict[str, set[str]]


class Import(NamedTuple):
    """A place at which a module imports another one."""

    source: str
    target: str
    line: int
    lazy: bool


def module_files(package: Path) -> dict[str, Path]:
    """Return the Python files of a package by the dotted names of their modules."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def unit_of(module: str) -> str:
    """Return the folder or file directly in the package that a module belongs to."""
    return [*module.split("."), "__init__"][1]


# ------------------------------------------------------------------------------- imports


ANY, DOT = r"\w+", re.escape(".")


class _Reader(ast.NodeVisitor):
    """Collects the imports of one module."""

    def __init__(self, module: str, is_package: bool, modules: Iterable[str]) -> None:
        self.module = module
        self.package = module if is_package else module.rpartition(".")[0]
        self.modules = frozenset(modules)
        self.root = module.split(".")[0]
        self.depth = 0
        self.found: list[Import] = []

    def add(self, target: str, node: Any, lazy: bool = False) -> None:
        if target in self.modules and target != self.module:
            self.found.append(Import(self.module, target, node.lineno, lazy or self.depth > 0))

    def in_function(self, node: Any) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    visit_FunctionDef = in_function  # noqa: N815
    visit_AsyncFunctionDef = in_function  # noqa: N815
    visit_Lambda = in_function  # noqa: N815

    def visit_If(self, node: ast.If) -> None:
        if not re.fullmatch(r"(\w+\.)?TYPE_CHECKING", ast.unparse(node.test)):
            self.generic_visit(node)
        for part in node.orelse if "TYPE_CHECKING" in ast.unparse(node.test) else ():
            self.visit(part)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            above = self.package.split(".")[: len(self.package.split(".")) - node.level + 1]
            base = ".".join([*above, *filter(None, [base])])
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            if inner != COMPILED:
                self.add(inner if inner in self.modules else base, node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring imports nothing
            self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if (self.module, node.value) in NO_IMPORTS:
            return
        if isinstance(node.value, str) and node.value.startswith(f"{self.root}."):
            self.add(node.value.partition(":")[0], node, lazy=True)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Read ``f"{__package__}.steps_{backend}"``: all modules that it may name.

        Of which the folder alone is known, as in ``f"fastreg.{name}"``, it may mean anything.
        """
        pattern = ""
        for part in node.values:
            if isinstance(part, ast.Constant):
                pattern += re.escape(str(part.value))
            elif isinstance(part, ast.FormattedValue):
                known = {"__package__": self.package, "__name__": self.module}
                text = ast.unparse(part.value)
                pattern += re.escape(known[text]) if text in known else ANY
        if pattern.startswith(self.root + DOT) and DOT + ANY not in pattern:
            for module in sorted(self.modules):
                if re.fullmatch(pattern, module):
                    self.add(module, node, lazy=True)
        self.generic_visit(node)


def imports_of(files: Mapping[str, Path]) -> list[Import]:
    """Return all imports of modules of a package by others of it."""
    found = []
    for module, path in files.items():
        reader = _Reader(module, path.name == "__init__.py", files)
        reader.visit(ast.parse(path.read_text(encoding="utf-8")))
        found += reader.found
    return found


def graph_of(nodes: Iterable[str], pairs: Iterable[tuple[str, str]]) -> Graph:
    """Return a graph without loops."""
    graph: Graph = {node: set() for node in nodes}
    for source, target in pairs:
        if source != target:
            graph[source].add(target)
    return graph


def with_folders(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Return imports together with those of the folders that they go through on their way."""
    for source, target in pairs:
        yield source, target
        parts = target.split(".")
        for count in range(2, len(parts)):
            folder = ".".join(parts[:count])
            if not f"{source}.".startswith(f"{folder}."):
                yield source, folder


def circles_of(graph: Graph) -> list[list[str]]:
    """Return the strongly connected components of more than one node (Tarjan), largest first."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in number:
                visit(other)
            if other in low:  # still on the stack
                low[node] = min(low[node], low[other])
        if low[node] == number[node]:
            place = stack.index(node)
            component = stack[place:]
            del stack[place:]
            for member in component:
                del low[member]
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in number:
            visit(node)
    return sorted(found, key=lambda circle: (-len(circle), circle))


def heights_of(graph: Graph) -> dict[str, int]:
    """Return the floor of each node: 0 where it imports nothing, else above all that it imports.

    The nodes of a circle are on one floor.
    """
    home: dict[str, tuple[str, ...]] = {node: (node,) for node in graph}
    for circle in circles_of(graph):
        home |= dict.fromkeys(circle, tuple(circle))
    heights: dict[tuple[str, ...], int] = {}

    def height(members: tuple[str, ...]) -> int:
        if members not in heights:
            below = {home[other] for node in members for other in graph[node]} - {members}
            heights[members] = 1 + max(map(height, below), default=-1)
        return heights[members]

    return {node: height(home[node]) for node in graph}


def imports_up(imports: Iterable[Import]) -> list[Import]:
    """Return the imports that run up, or from one unit of a floor to another one of it."""
    floor = {unit: height for height, units in enumerate(FLOORS) for unit in units}

    def runs_up(one: Import) -> bool:
        source, target = unit_of(one.source), unit_of(one.target)
        if source == target or source not in floor or target not in floor:
            return False
        return floor[target] >= floor[source]

    return [one for one in imports if runs_up(one)]


# ------------------------------------------------------------------------------- lines and C++


KINDS = ("code", "docstring", "comment", "blank")


def kinds_of_lines(source: str) -> Counter[str]:
    """Count the lines of a file that are code, docstring, comment or blank."""
    kind = dict.fromkeys(range(1, source.count("\n") + 1), "blank")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        lines = range(token.start[0], token.end[0] + 1)
        if token.type == tokenize.COMMENT:
            if kind[token.start[0]] == "blank":
                kind[token.start[0]] = "comment"
        elif token.type not in (
            *(tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
            tokenize.ENDMARKER,
        ):
            kind |= dict.fromkeys(lines, "code")
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            kind |= dict.fromkeys(range(node.lineno, (node.end_lineno or 0) + 1), "docstring")
    return Counter(kind.values())


def native_imports(csrc: Path) -> list[str]:
    """Return the places in C++ that import a Python module of the package, or name one."""
    found = []
    for path in sorted(csrc.rglob("*")):
        if path.suffix in (".cpp", ".h", ".inl", ".cu", ".cuh"):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                code = re.sub(r"(^|\s)//.*", "", line)
                for module in re.findall(r'"(fastreg\.\w+)', code):
                    place = f"{path.relative_to(csrc.parent).as_posix()}:{number}"
                    verb = "imports" if "import" in code else "names"
                    found.append(f"{place} {verb} {module}")
    return found


# ------------------------------------------------------------------------------- figures


def figures(root: Path) -> dict[str, Any]:
    """Return everything that there is to count in a checkout, but for the flows."""
    files = module_files(root / "fastreg")
    imports = imports_of(files)
    pairs = {(one.source, one.target) for one in imports}
    at_import = {(one.source, one.target) for one in imports if not one.lazy}
    units = sorted({unit_of(module) for module in files})
    arrows = graph_of(units, ((unit_of(a), unit_of(b)) for a, b in pairs))
    in_circle = {unit: place for place, circle in enumerate(circles_of(arrows)) for unit in circle}
    product = [path for module, path in files.items() if unit_of(module) != "bench"]
    lines: Counter[str] = Counter()
    for path in product:
        lines += kinds_of_lines(path.read_text(encoding="utf-8"))
    placed = {unit for floor in FLOORS for unit in floor}
    return {
        "modules": len(files),
        "imports": len(pairs),
        "lazy_imports": len(pairs - at_import),
        "circles": circles_of(graph_of(files, with_folders(pairs))),
        "circles_by_files": circles_of(graph_of(files, pairs)),
        "circles_at_import": circles_of(graph_of(files, with_folders(at_import))),
        "units": units,
        "unit_arrows": sum(map(len, arrows.values())),
        "unit_circles": circles_of(arrows),
        "arrows_in_circles": sorted(
            f"{source} -> {target}"
            for source, targets in arrows.items()
            for target in targets
            if source in in_circle and in_circle[source] == in_circle.get(target)
        ),
        "floors": 1 + max(heights_of(arrows).values()),
        "units_without_floor": [unit for unit in units if unit not in placed],
        "imports_up": [
            f"{one.source}:{one.line} -> {one.target}" for one in sorted(set(imports_up(imports)))
        ],
        "product_files": len(product),
        "product_lines": sum(lines.values()),
        "lines_by_kind": {kind: lines[kind] for kind in KINDS},
        "native_imports": native_imports(root / "csrc"),
    }


def text(found: Mapping[str, Any]) -> Iterator[str]:
    """Return the lines that are printed: figures first, then what they are made of."""
    lines = found["lines_by_kind"]
    kinds = ", ".join(f"{lines[kind]:,} {kind}" for kind in KINDS[:-1])
    rows = {
        "modules": found["modules"],
        "imports between them": f"{found['imports']}, {found['lazy_imports']} of them only lazy",
        "modules in circles": members(found["circles"]),
        "  by files": members(found["circles_by_files"]),
        "  without lazy imports": members(found["circles_at_import"]),
        "imports that run up": len(found["imports_up"]),
        "folders and top files": len(found["units"]),
        "  without a floor": len(found["units_without_floor"]),
        "  in circles": members(found["unit_circles"]),
        "arrows between them": found["unit_arrows"],
        "  in circles of them": len(found["arrows_in_circles"]),
        "floors they make": found["floors"],
        "files without bench": found["product_files"],
        "lines without bench": f"{found['product_lines']:,}",
        "  of them": kinds,
        "C++ naming Python modules": len(found["native_imports"]),
    }
    yield from (f"{name:<27}{value}" for name, value in rows.items())
    for title, key in (
        ("circle", "circles"),
        ("circle by files", "circles_by_files"),
        ("circle of folders and top files", "unit_circles"),
    ):
        for circle in found[key]:
            yield from listed(f"{title} of {len(circle)}", circle)
    for title, key in (
        ("imports that run up", "imports_up"),
        ("arrows in circles", "arrows_in_circles"),
        ("folders and top files without a floor", "units_without_floor"),
        ("C++", "native_imports"),
    ):
        yield from listed(title, found[key])


def members(circles: list[list[str]]) -> str:
    """Return how many are in circles, and in how many."""
    return f"{sum(map(len, circles))} in {len(circles)}" if circles else "0"


def listed(title: str, items: list[str], width: int = 80) -> Iterator[str]:
    """Return a title and items below it, in lines of at most this width."""
    if not items:
        return
    yield f"\n{title}:"
    line = " "
    for item in items:
        if len(line) > 1 and len(line) + len(item) + 2 > width - 1:
            yield line
            line = " "
        line += f" {item};"
    yield line.removesuffix(";")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--at", type=Path, default=ROOT, metavar="DIR", help="another checkout")
    parser.add_argument("--flows", action="store_true", help="count calls too (needs a build)")
    parser.add_argument("--json", action="store_true", help="everything, for programs")
    arguments = parser.parse_args()
    found = figures(arguments.at.resolve())
    if arguments.flows:
        import house_flows

        found["flows"] = house_flows.of_checkout(arguments.at.resolve())
    if arguments.json:
        json.dump(found, sys.stdout, indent=1)
        print()
        return
    print("\n".join(text(found)))
    if arguments.flows:
        print()
        print("\n".join(house_flows.table(found["flows"])))


if __name__ == "__main__":
    main()
