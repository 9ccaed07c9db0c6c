"""Mutation testing of the maths: changes formulas one at a time, and sees whether a test notices.

``python tests/mutation/mutate.py`` changes files of csrc: operators, constants, conditions, names
of numbers, order of operations, operands and statements that are left out.  The formulas
(penalty.inl, prox.inl, step.inl, step.h, canonical_sum.h) meet test_formulas.cpp and
test_canonical_sum.cpp of tests/cpp; the loops over chunks and what is made of their sums (norms,
clips, penalties of steps) meet test_norms.cpp and test_step.cpp, with the loops that every
processor has.  All mutants of such a suite are in one program, which chooses one by number, so that
they cost two compilations; what the compiler decides is a build of its own.

Contract: every mutant is killed, or is in explained.json with the reason why no test can notice it.
One that is explained but killed, or is no longer made, is an error too.  What does not compile is
no mutant, and is not counted; what decides about speed alone is not changed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
FLAGS = ("-std=c++20", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi", "-w")
PORTABLE = ("-DFASTREG_ISA=portable", "-DFASTREG_VECTOR_BYTES=16")
JOBS = 2
ELSEWHERE = ("cuda", "python", "jax")  # folders of csrc that these tests do without


@dataclass(frozen=True)
class Suite:
    """Files that are changed, and the tests that have to notice."""

    name: str
    files: tuple[str, ...]
    tests: tuple[str, ...]
    optimize: str = "-O0"
    sources: tuple[str, ...] = ()
    """Of csrc, compiled with the files that are changed; are such files themselves, or include
    them."""
    engine: tuple[str, ...] = ()
    """Compiled as it is."""


SUITES = (
    Suite(
        "formulas",
        ("penalty.inl", "prox.inl", "step.inl", "step.h", "canonical_sum.h"),
        ("test_formulas.cpp", "test_canonical_sum.cpp"),
    ),
    Suite(
        "loops",
        (
            *("chunk_sums.h", "chunk_norms.h", "norms.cpp", "steps.cpp"),
            *("cpu/lane_sums.h", "cpu/magnitudes.h"),
            *("cpu/norm_lanes.h", "cpu/norm_loops.cpp", "cpu/shared_chunks.h"),
        ),
        ("test_norms.cpp", "test_step.cpp"),
        "-O1",
        ("norms.cpp", "steps.cpp", "cpu/norm_loops.cpp", "cpu/step_kernel.cpp"),
        (
            *("layout.cpp", "plan.cpp", "cpu/dispatch.cpp", "cpu/floor_loops.cpp"),
            *("cpu/floors.cpp", "cpu/kernel.cpp", "cpu/openmp_team.cpp", "cpu/policy.cpp"),
            *("cpu/pool.cpp", "cpu/prox_kernel.cpp", "cpu/quota.cpp"),
        ),
    ),
)
FILES = tuple(name for suite in SUITES for name in suite.files)

SPEED = re.compile(
    r"\bfetch|\belements_\b|policy\(\)|\bbytes [+]?= |\bvariant\b|chunks_per_task|\bcrew\b"
)
"""What no result depends on."""

# What stands for another: each name becomes the next of its list.
NAMES = (
    (
        *("n.inverse_scale", "n.clip", "n.l1", "n.double_l2", "n.weight_decay", "n.momentum"),
        *("n.undamped", "n.beta1", "n.one_minus_beta1", "n.beta2", "n.one_minus_beta2", "n.eps"),
        *("n.lr", "n.kept", "n.size", "n.correction", "n.decay", "n.threshold", "n.divisor"),
        "n.one",
    ),
    (
        *("s.lr", "s.momentum", "s.dampening", "s.weight_decay", "s.beta1", "s.beta2", "s.eps"),
        *("s.l1", "s.l2", "s.factor"),
    ),
    (
        *("op_unscale", "op_negate", "op_clip_data", "op_gradient_l1", "op_gradient_l2"),
        *("op_clip_total", "op_weight_decay", "op_momentum", "op_begin", "op_nesterov"),
        *("op_amsgrad", "op_decay", "op_shrink", "op_divide", "op_scaled", "op_cautious"),
    ),
    ("Mode::none", "Mode::gradient", "Mode::proximal", "Mode::scaled", "Mode::decoupled"),
    ("Clip::none", "Clip::data", "Clip::total"),
    ("flag_nesterov", "flag_maximize", "flag_amsgrad", "flag_cautious"),
    ("Algorithm::sgd", "Algorithm::adamw"),
    ("term_l1", "term_l2"),
    ("t1", "t2"),
    ("gradient_l1", "gradient_l2"),
    ("settings.l1", "settings.l2"),
    ("threshold", "divisor"),
    ("l1_", "l2_"),
    ("lanes.l1", "lanes.l2"),
    ("norm.l1", "norm.l2"),
    ("kept.l1", "kept.l2"),
    ("sums.l1", "sums.l2"),
    ("zeros_", "nonfinite_"),
    ("lanes.zeros", "lanes.nonfinite"),
    ("norm.zeros", "norm.nonfinite"),
    ("at.first", "at.second", "at.largest"),
    ("item.first", "item.second", "item.largest"),
    ("largest_[0]", "largest_[1]"),
)
OTHER_NAME = {one: group[(i + 1) % len(group)] for group in NAMES for i, one in enumerate(group)}
OPERATORS = {
    "+": "-*", "-": "+", "*": "/+", "/": "*", "%": "/", "<": ("<=", ">"), ">": (">=", "<"),
    "<=": ("<",), ">=": (">",), "==": ("!=",), "!=": ("==",), "&&": ("||",), "||": ("&&",),
    "&": "|", "|": "&", "+=": ("-=", "="), "*=": ("/=", "="), "/=": ("*=",), "|=": ("=", "&="),
    "-=": ("+=", "="), "=": (), ">>=": (),
}  # fmt: skip
OPERATOR = re.compile(r" (<=|>=|==|!=|&&|\|\||\+=|-=|\*=|/=|\|=|[-+*/%<>&|]) ")
NESTED = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
OPERAND = rf"(?:[\w:.]+(?:<[\w, |]+>)?(?:{NESTED})?(?:\[[^\]]*\])?|{NESTED})"

AS_IT_IS = {
    "statement": "{{ {}; }}",
    "step": "(void)({}))",
    "expression": "({}))",
    "condition": "({}))",
}


@dataclass
class Mutant:
    file: str
    line: int
    before: str
    after: str
    which: int = 1  # of the mutants of a file whose texts are the same

    @property
    def key(self) -> str:
        again = f" (number {self.which})" if self.which > 1 else ""
        return f"{self.file}: {self.before} -> {self.after or '(left out)'}{again}"


def variants(text: str, is_condition: bool) -> Iterator[str]:
    """Yield the changes of an expression or a statement."""
    for found in OPERATOR.finditer(text):
        start, end = found.span(1)
        for other in OPERATORS[found[1]]:
            yield text[:start] + other + text[end:]
        if found[1] in ("+", "-", "*", "/", "&&", "||", "&", "|", "%"):
            right = re.match(OPERAND, text[end + 1 :])
            if right:
                yield text[: start - 1] + text[end + 1 + right.end() :]
            left = re.search(rf"{OPERAND}$", text[: start - 1])
            if left:
                yield text[: left.start()] + text[end + 1 :]
    for found in re.finditer(r"(?<![\w.])(\d+)(\.\d+)?(u?)\b", text):
        number = int(found[1])
        for near in {number + 1, max(number - 1, 0)} - {number}:
            yield text[: found.start()] + f"{near}{found[2] or ''}{found[3]}" + text[found.end() :]
    for found in re.finditer(rf"(?<![\w>])({NESTED})", text):
        if OPERATOR.search(found[1]):
            yield text[: found.start()] + found[1][1:-1] + text[found.end() :]
    for found in re.finditer(r"(?<![\w:.])((?:[a-zA-Z]+(?:::|\.))?\w+)\b(?!\()", text):
        if found[1] in OTHER_NAME:
            yield text[: found.start()] + OTHER_NAME[found[1]] + text[found.end() :]
    for found in re.finditer(rf"(?<!\w)does{NESTED}", text):
        yield text[: found.start()] + "!" + text[found.start() :]
    for found in re.finditer(r"(?<=[ (])-(?=[a-z])", text):
        yield text[: found.start()] + text[found.end() :]
    choice = re.fullmatch(r"(.*?) \? (.*) : (.*)", text)
    if choice:
        yield f"{choice[1]} ? {choice[3]} : {choice[2]}"
    if is_condition:
        yield f"!({text})"


def formulas_of(text: str) -> str:
    """Return a file with blanks in the place of all that is not run: comments, lines of the
    preprocessor, functions that the compiler calls to fill tables."""

    def blank(found: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", found[0])

    text = re.sub(r"//[^\n]*|^#(?:[^\n]*\\\n)*[^\n]*", blank, text, flags=re.M)
    return re.sub(r"^constexpr [^\n]*\{\n(?:[^}\n][^\n]*\n|\n)*\}", blank, text, flags=re.M)


def pieces(code: str) -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, kind) of what can be changed: expression, condition, statement."""
    depths, start = [0], 0  # of brackets, anew in each block
    for place, character in enumerate(code):
        depths[-1] += (character in "([") - (character in ")]")
        is_within = depths[-1] > 0
        if character == "{":
            depths.append(0)
        elif character == "}":
            depths.pop()
        elif is_within or character != ";":
            continue
        text = code[start:place]
        lead = start + len(text) - len(text.lstrip())
        if not (is_within and character == "{"):  # of a lambda that is an argument
            yield from within(code, lead, place, character)
        start = place + 1


def within(code: str, start: int, end: int, closing: str) -> Iterator[tuple[int, int, str]]:
    text = code[start:end]
    if closing == "{":
        found = re.fullmatch(r"(?:else )?(if|while|if constexpr) \((.*)\)\s*", text, re.S)
        if found:
            kind = "constexpr" if found[1] == "if constexpr" else "condition"
            yield start + found.start(2), start + found.end(2), kind
        found = re.fullmatch(r"for \(([^;]*); ([^;]*); ([^;]*)\)\s*", text)
        if found:
            initial = re.fullmatch(r".* = (.*)", found[1])
            if initial:
                place = start + found.start(1)
                yield place + initial.start(1), place + initial.end(1), "expression"
            yield start + found.start(2), start + found.end(2), "condition"
            yield start + found.start(3), start + found.end(3), "step"
    elif closing == ";" and not re.match(
        r"using |static_assert|static constexpr|constexpr (?!int)", text
    ):
        found = re.match(r"return (?=\S)", text)
        declared = re.match(
            r"(?:static |const )*[\w:<>]+(?:<[^;=]*>)?[&*]? \w+ = (?!\[)",
            text,
        )
        if found:
            yield start + found.end(), end, "expression"
        elif re.match(r"constexpr int \w+ = ", text):
            yield start, end, "constexpr"
        elif declared:
            yield start + declared.end(), end, "expression"
        elif re.match(r"[\w.\[\] +]+ (?:[-+*/|]|>>)?= |[\w.:]+(?:<[^;(]*>)?\([^;{]*\)$", text):
            yield start, end, "statement"
    elif closing == "}":
        for found in re.finditer(r"to\(n\.\w+\)", text):
            yield start + found.start(), start + found.end(), "expression"


@dataclass
class Piece:
    """A part of a file: as it is, or what a mutant puts before it."""

    text: str
    mutant: Mutant | None = None
    original: str = ""
    """Of a part that mutants are put before: as it stands where none of them compiles."""


def changed(name: str) -> tuple[list[Piece], list[tuple[Mutant, str]]]:
    """Return a file with its mutants in it, and mutants with a file of their own."""
    original = (ROOT / "csrc" / name).read_text(encoding="utf-8")
    code = formulas_of(original)
    found: list[Piece] = []
    apart: list[tuple[Mutant, str]] = []
    seen: Counter[tuple[str, str]] = Counter()
    done = 0
    for start, end, kind in pieces(code):
        before = " ".join(code[start:end].split())
        if SPEED.search(code[code.rfind("\n", 0, start) + 1 : end]):
            continue
        line = code.count("\n", 0, start) + 1
        texts = dict.fromkeys(variants(before, kind == "condition"))
        texts.pop(before, None)
        if kind == "statement":
            texts[""] = None
        seen.update((before, after) for after in texts)
        mutants = [Mutant(name, line, before, after, seen[before, after]) for after in texts]
        if kind == "constexpr":
            apart += [(one, original[:start] + one.after + original[end:]) for one in mutants]
            continue
        found.append(Piece(original[done:start]))
        done = end
        found += [Piece(held(one, kind), one) for one in mutants]
        if kind == "statement":
            done = code.index(";", end) + 1
        found.append(Piece(AS_IT_IS[kind].format(before), original=original[start:done]))
    found.append(Piece(original[done:]))
    return found, apart


def held(mutant: Mutant, kind: str) -> str:
    """Return a mutant as it stands in the file, on a line of its own; @ is its number."""
    if kind == "statement":
        return f"\nif (fastreg_mutant == @) {{ {mutant.after}; }} else "
    cast = "void" if kind == "step" else f"std::remove_cvref_t<decltype({mutant.before})>"
    return f"\nfastreg_mutant == @ ? ({cast})({mutant.after}) : "


def text_of(found: list[Piece], numbers: dict[int, int]) -> str:
    """Return the text of a file with the mutants that have a number (by id)."""
    texts = []
    is_changed = False
    for piece in found:
        if piece.mutant is None:
            texts.append(piece.text if is_changed or not piece.original else piece.original)
            is_changed = False
        elif id(piece.mutant) in numbers:
            if not is_changed and not piece.text.startswith("\nif "):
                texts.append("(")  # closed by AS_IT_IS
            texts.append(piece.text.replace("@", str(numbers[id(piece.mutant)]), 1))
            is_changed = True
    # These can be asked for before the program runs, but are not.
    return re.sub(r"\bconstexpr (?=(?:std::int64_t chunk_count|bool does)\b)", "", "".join(texts))


class Build:
    """Programs of a suite's tests with changed files."""

    def __init__(self, suite: Suite, folder: Path, compiler: str) -> None:
        self.suite, self.folder, self.compiler = suite, folder / suite.name, compiler
        self.folder.mkdir(parents=True, exist_ok=True)
        self.plain: dict[str, Path] = {}
        self.known: dict[str, list[str]] = {}
        sources = [HERE / "main.cpp", ROOT / "tests/cpp/oracle.cpp"]
        sources += [ROOT / "csrc" / name for name in suite.engine]
        self.objects, errors = self.compile_all(sources, ROOT / "csrc", self.folder)
        if errors:
            raise SystemExit(errors)

    def compile_all(self, sources: list[Path], headers: Path, to: Path) -> tuple[list[Path], str]:
        """Compile files, of different names, into a folder; return also what the compiler says."""
        objects = [to / f"{source.name}.o" for source in sources]
        with ThreadPoolExecutor(JOBS) as pool:
            errors = pool.map(self.compile, sources, objects, repeat(headers))
            return objects, "".join(errors)

    def compile(self, source: Path, to: Path | None, headers: Path) -> str:
        """Compile a file, or look at it alone; return what the compiler says where it fails."""
        command = self.command(source, headers)
        command += ["-fsyntax-only"] if to is None else ["-c", "-o", str(to)]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.stderr if done.returncode else ""

    def command(self, source: Path, headers: Path) -> list[str]:
        command = [self.compiler, *FLAGS, *PORTABLE, self.suite.optimize, f"-I{headers}"]
        command += [f"-I{ROOT / 'tests/cpp'}", "-include", "type_traits"]
        return [*command, "-include", str(HERE / "mutant.h"), str(source)]

    def without(self, file: str, headers: Path) -> list[str]:
        """Return the names of sources that do not include a file."""
        if file not in self.known:
            self.known[file] = [
                source.name
                for source in self.changed_sources(headers)
                if str(headers / file)
                not in subprocess.check_output([*self.command(source, headers), "-MM"], text=True)
            ]
        return self.known[file]

    def headers(self, texts: dict[str, str], folder: str) -> Path:
        """Write csrc, as far as the tests need it, with the changed files in their place."""
        place = self.folder / folder
        for source in sorted((ROOT / "csrc").glob("**/*")):
            name = source.relative_to(ROOT / "csrc")
            if name.suffix in (".h", ".inl", ".cpp") and name.parts[0] not in ELSEWHERE:
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                text = texts.get(name.as_posix()) or source.read_text(encoding="utf-8")
                (place / name).write_text(text, encoding="utf-8")
        return place

    def changed_sources(self, headers: Path) -> list[Path]:
        """Return what is compiled with changed files."""
        tests = [ROOT / "tests/cpp" / name for name in self.suite.tests]
        return tests + [headers / name for name in self.suite.sources]

    def faults(self, sources: list[Path], headers: Path) -> dict[Path, str]:
        """Return what the compiler says of the files that it refuses."""
        with ThreadPoolExecutor(JOBS) as pool:
            errors = pool.map(self.compile, sources, repeat(None), repeat(headers))
            return {source: said for source, said in zip(sources, errors, strict=True) if said}

    def program(self, headers: Path, file: str = "") -> tuple[Path | None, str]:
        """Return a program with changed files, or what the compiler says.

        With `file`, only that one has changed; what does not include it is compiled once.
        """
        sources = self.changed_sources(headers)
        same: list[Path] = []
        if file:
            if not self.plain:
                place = self.headers({}, "plain")
                compiled, errors = self.compile_all(self.changed_sources(place), place, place)
                if errors:
                    raise SystemExit(errors)
                self.plain = {
                    source.name: one for source, one in zip(sources, compiled, strict=True)
                }
            names = self.without(file, headers)
            same = [self.plain[name] for name in names]
            sources = [source for source in sources if source.name not in names]
        objects, errors = self.compile_all(sources, headers, headers)
        if errors:
            return None, errors
        program = headers / "tests"
        command = [self.compiler, *map(str, self.objects + same + objects), "-o", str(program)]
        subprocess.run([*command, "-lpthread", "-ldl"], check=True)
        return program, ""


def outcomes(program: Path, numbers: Iterable[int]) -> dict[int, str]:
    """Return what became of mutants: killed, hung or survived."""
    command = [str(program), *map(str, numbers)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    lines = (line.split() for line in done.stdout.splitlines())
    return {int(number): outcome for number, outcome in lines}


def all_outcomes(build: Build) -> list[tuple[Mutant, str]]:
    """Return what became of each mutant of a suite; those that do not compile are left out."""
    names = build.suite.files
    files: dict[str, list[Piece]] = {}
    apart: list[tuple[Mutant, str]] = []
    for name in names:
        files[name], own = changed(name)
        apart += own
    mutants = [one.mutant for name in names for one in files[name] if one.mutant]
    invalid: set[int] = set()
    headers = build.folder / "all"
    pending = build.changed_sources(headers)
    while pending:
        numbers = {id(one): i for i, one in enumerate(mutants, 1) if i not in invalid}
        build.headers({name: text_of(files[name], numbers) for name in names}, "all")
        faults = build.faults(pending, headers)
        wrong = blamed(headers, "".join(faults.values()))
        if faults and not wrong - invalid:
            raise SystemExit(f"the mutants do not compile:\n{''.join(faults.values())[:3000]}")
        invalid |= wrong
        pending = list(faults)
    program, errors = build.program(headers)
    if program is None:
        raise SystemExit(f"the mutants do not compile:\n{errors[:3000]}")
    if outcomes(program, [0]) != {0: "survived"}:
        raise SystemExit("the tests fail on the code as it is")
    valid = sorted(set(range(1, len(mutants) + 1)) - invalid)
    with ThreadPoolExecutor(JOBS) as pool:
        parts = pool.map(lambda job: outcomes(program, valid[job::JOBS]), range(JOBS))
    results = [(mutants[number - 1], what) for part in parts for number, what in part.items()]
    for number, (mutant, text) in enumerate(apart):
        headers = build.headers({mutant.file: text}, f"apart{number}")
        program, _ = build.program(headers, mutant.file)
        if program is not None:
            results.append((mutant, outcomes(program, [0])[0]))
    return results


def blamed(headers: Path, errors: str) -> set[int]:
    """Return the numbers of the mutants that the compiler's errors are about."""
    for kind in ("error:", "required"):  # the second where a template says what is wrong with it
        found = set()
        place = rf"{re.escape(str(headers))}/([\w./]+):(\d+):\d+: +{kind}"
        for file, line in set(re.findall(place, errors)):
            text = (headers / file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
            found |= {int(number) for number in re.findall(r"fastreg_mutant == (\d+)", text)}
        if found:
            break
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compiler", default=os.environ.get("CXX", "g++"))
    parser.add_argument("--build", type=Path, default=ROOT / "build/mutation")
    parser.add_argument("--list", action="store_true", help="list all mutants, and run none")
    parser.add_argument("--suite", choices=[suite.name for suite in SUITES], help="only this one")
    options = parser.parse_args()
    if options.list:
        for name in FILES:
            found, apart = changed(name)
            every = [*(piece.mutant for piece in found), *(mutant for mutant, _ in apart)]
            for one in filter(None, every):
                print(f"line {one.line}: {one.key}")
        return 0
    results = []
    for suite in SUITES:
        if not options.suite or suite.name == options.suite:
            results += all_outcomes(Build(suite, options.build, options.compiler))
    explained: dict[str, str] = json.loads((HERE / "explained.json").read_text(encoding="utf-8"))
    survivors = {one.key: one for one, outcome in results if outcome == "survived"}
    unexplained = [one for key, one in survivors.items() if key not in explained]
    seen = {one.file for one, _ in results}
    stale = [key for key in explained if key not in survivors and key.split(": ")[0] in seen]
    for one in unexplained:
        print(f"SURVIVED, line {one.line}: {one.key}")
    for key in stale:
        print(f"EXPLAINED, but killed or not made any more: {key}")
    for name in FILES:
        if name not in seen:
            continue
        of_file = [one.key for one, _ in results if one.file == name]
        alive = [key for key in of_file if key in survivors]
        told = len([key for key in alive if key in explained])
        killed = len(of_file) - len(alive)
        print(f"{name}: {len(of_file)} mutants, {killed} killed, {told} explained")
    print(f"{len(results) - len(unexplained)} passed, {len(unexplained) + len(stale)} failed")
    return 1 if unexplained or stale else 0


if __name__ == "__main__":
    sys.exit(main())
