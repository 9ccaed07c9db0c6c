"""Mutation testing of the maths: changes formulas one at a time, and sees whether a test notices.

``python tests/mutation/mutate.py`` changes csrc/penalty.inl, prox.inl, step.inl, step.h and
canonical_sum.h: operators, constants, conditions, names of numbers, order of operations, operands
and statements that are left out.  All mutants of a build are in one program, which chooses one by
number, so that they cost two compilations; what the compiler decides is a build of its own.  Each
is run against test_formulas.cpp and test_canonical_sum.cpp of tests/cpp.

Contract: every mutant is killed, or is in explained.json with the reason why no test can notice it.
One that is explained but killed, or is no longer made, is an error too.  What does not compile is
no mutant, and is not counted.
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
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
FILES = ("penalty.inl", "prox.inl", "step.inl", "step.h", "canonical_sum.h")
BESIDE = ("dtype.h", "penalty.h")  # which they include
TESTS = ("test_formulas.cpp", "test_canonical_sum.cpp")
FLAGS = ("-std=c++20", "-O0", "-ffp-contract=off", "-Wno-psabi", "-w")

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
)
OTHER_NAME = {one: group[(i + 1) % len(group)] for group in NAMES for i, one in enumerate(group)}
OPERATORS = {
    "+": "-*", "-": "+", "*": "/+", "/": "*", "%": "/", "<": ("<=", ">"), ">": (">=", "<"),
    "<=": ("<",), ">=": (">",), "==": ("!=",), "!=": ("==",), "&&": ("||",), "||": ("&&",),
    "&": "|", "|": "&", "+=": ("-=", "="), "*=": ("/=", "="), "/=": ("*=",), "|=": ("=", "&="),
    "=": (), ">>=": (),
}  # fmt: skip
OPERATOR = re.compile(r" (<=|>=|==|!=|&&|\|\||\+=|\*=|/=|\|=|[-+*/%<>&|]) ")
NESTED = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
OPERAND = rf"(?:[\w:.]+(?:<[\w, |]+>)?(?:{NESTED})?(?:\[[^\]]*\])?|{NESTED})"

AS_IT_IS = {
    "statement": "{{ {}; }}",
    "step": "(void)({})",
    "expression": "({})",
    "condition": "({})",
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


def without_comments(text: str) -> str:
    """Return a file with blanks in the place of comments and lines of the preprocessor."""

    def blank(found: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", found[0])

    return re.sub(r"//[^\n]*|^#(?:[^\n]*\\\n)*[^\n]*", blank, text, flags=re.M)


def pieces(code: str) -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, kind) of what can be changed: expression, condition, statement."""
    depth, start = 0, 0
    for place, character in enumerate(code):
        depth += (character in "([") - (character in ")]")
        if depth or character not in ";{}":
            continue
        text = code[start:place]
        lead = start + len(text) - len(text.lstrip())
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
    elif closing == ";":
        found = re.match(r"return (?=\S)", text)
        declared = re.match(
            r"(?:static |constexpr |const )*[\w:<>]+(?:<[^;=]*>)?[&*]? \w+ = (?!\[)", text
        )
        if found:
            yield start + found.end(), end, "expression"
        elif re.match(r"constexpr int \w+ = ", text):
            yield start, end, "constexpr"
        elif declared:
            yield start + declared.end(), end, "expression"
        elif re.match(r"[\w.\[\] +]+ (?:[-+*/|]|>>)?= |\w+\([^;{]*\)$", text):
            yield start, end, "statement"
    elif closing == "}":
        for found in re.finditer(r"to\(n\.\w+\)", text):
            yield start + found.start(), start + found.end(), "expression"


@dataclass
class Piece:
    """A part of a file: as it is, or what a mutant puts before it."""

    text: str
    mutant: Mutant | None = None


def changed(name: str) -> tuple[list[Piece], list[tuple[Mutant, str]]]:
    """Return a file with its mutants in it, and mutants with a file of their own."""
    original = (ROOT / "csrc" / name).read_text(encoding="utf-8")
    code = without_comments(original)
    found: list[Piece] = []
    apart: list[tuple[Mutant, str]] = []
    seen: Counter[tuple[str, str]] = Counter()
    done = 0
    for start, end, kind in pieces(code):
        before = " ".join(code[start:end].split())
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
        found.append(Piece(AS_IT_IS[kind].format(before)))
        if kind == "statement":
            done = code.index(";", end) + 1
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
    for piece in found:
        if piece.mutant is None:
            texts.append(piece.text)
        elif id(piece.mutant) in numbers:
            texts.append(piece.text.replace("@", str(numbers[id(piece.mutant)]), 1))
    # These can be asked for before the program runs, but are not.
    return re.sub(r"\bconstexpr (?=(?:std::int64_t chunk_count|bool does)\b)", "", "".join(texts))


class Build:
    """Programs of tests with changed headers."""

    def __init__(self, folder: Path, compiler: str) -> None:
        self.folder, self.compiler = folder, compiler
        folder.mkdir(parents=True, exist_ok=True)
        for source in (HERE / "main.cpp", ROOT / "tests/cpp/oracle.cpp"):
            errors = self.compile(source, folder / f"{source.stem}.o", ROOT / "csrc")
            if errors:
                raise SystemExit(errors)

    def compile(self, source: Path, to: Path | None, headers: Path) -> str:
        """Compile a file, or look at it alone; return what the compiler says where it fails."""
        command = [self.compiler, *FLAGS, f"-I{headers}", f"-I{ROOT / 'tests/cpp'}"]
        command += ["-include", "type_traits", str(source)]
        command += ["-fsyntax-only"] if to is None else ["-c", "-o", str(to)]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.stderr if done.returncode else ""

    def headers(self, texts: dict[str, str], folder: str) -> Path:
        place = self.folder / folder
        place.mkdir(exist_ok=True)
        for name in (*FILES, *BESIDE):
            text = texts.get(name) or (ROOT / "csrc" / name).read_text(encoding="utf-8")
            (place / name).write_text(
                text.replace("#pragma once\n", "#pragma once\nextern int fastreg_mutant;\n", 1),
                encoding="utf-8",
            )
        return place

    def program(self, headers: Path, of: tuple[str, ...]) -> tuple[Path | None, str]:
        objects = [self.folder / "main.o", self.folder / "oracle.o"]
        for test in of:
            objects.append(headers / f"{test}.o")
            errors = self.compile(ROOT / "tests/cpp" / test, objects[-1], headers)
            if errors:
                return None, errors
        program = headers / "tests"
        subprocess.run([self.compiler, *map(str, objects), "-o", str(program)], check=True)
        return program, ""


def outcomes(program: Path, numbers: Iterable[int]) -> dict[int, str]:
    """Return what became of mutants: killed, hung or survived."""
    command = [str(program), *map(str, numbers)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    lines = (line.split() for line in done.stdout.splitlines())
    return {int(number): outcome for number, outcome in lines}


def all_outcomes(build: Build) -> list[tuple[Mutant, str]]:
    """Return what became of each mutant; those that do not compile are left out."""
    files: dict[str, list[Piece]] = {}
    apart: list[tuple[Mutant, str]] = []
    for name in FILES:
        files[name], own = changed(name)
        apart += own
    mutants = [one.mutant for name in FILES for one in files[name] if one.mutant]
    invalid: set[int] = set()
    for _ in range(12):
        numbers = {id(one): i for i, one in enumerate(mutants, 1) if i not in invalid}
        texts = {name: text_of(files[name], numbers) for name in FILES}
        headers = build.headers(texts, "all")
        errors = "".join(build.compile(ROOT / "tests/cpp" / one, None, headers) for one in TESTS)
        if not errors:
            break
        wrong = blamed(headers, errors)
        if not wrong - invalid:
            raise SystemExit(f"the mutants do not compile:\n{errors[:3000]}")
        invalid |= wrong
    program, errors = build.program(headers, TESTS)
    if program is None:
        raise SystemExit(f"the mutants do not compile:\n{errors[:3000]}")
    if outcomes(program, [0]) != {0: "survived"}:
        raise SystemExit("the tests fail on the code as it is")
    valid = sorted(set(range(1, len(mutants) + 1)) - invalid)
    results = [(mutants[number - 1], what) for number, what in outcomes(program, valid).items()]
    for number, (mutant, text) in enumerate(apart):
        test = TESTS[1] if mutant.file == "canonical_sum.h" else TESTS[0]
        headers = build.headers({mutant.file: text}, f"apart{number}")
        program, _ = build.program(headers, (test,))
        if program is not None:
            results.append((mutant, outcomes(program, [0])[0]))
    return results


def blamed(headers: Path, errors: str) -> set[int]:
    """Return the numbers of the mutants that the compiler's errors are about."""
    found = set()
    place = rf"{re.escape(str(headers))}/([\w.]+):(\d+):\d+: error:"
    for file, line in set(re.findall(place, errors)):
        text = (headers / file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        found |= {int(number) for number in re.findall(r"fastreg_mutant == (\d+)", text)}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compiler", default=os.environ.get("CXX", "g++"))
    parser.add_argument("--build", type=Path, default=ROOT / "build/mutation")
    parser.add_argument("--list", action="store_true", help="list all mutants, and run none")
    options = parser.parse_args()
    if options.list:
        for name in FILES:
            found, apart = changed(name)
            every = [*(piece.mutant for piece in found), *(mutant for mutant, _ in apart)]
            for one in filter(None, every):
                print(f"line {one.line}: {one.key}")
        return 0
    results = all_outcomes(Build(options.build, options.compiler))
    explained: dict[str, str] = json.loads((HERE / "explained.json").read_text(encoding="utf-8"))
    survivors = {one.key: one for one, outcome in results if outcome == "survived"}
    unexplained = [one for key, one in survivors.items() if key not in explained]
    stale = [key for key in explained if key not in survivors]
    for one in unexplained:
        print(f"SURVIVED, line {one.line}: {one.key}")
    for key in stale:
        print(f"EXPLAINED, but killed or not made any more: {key}")
    for name in FILES:
        of_file = [one.key for one, _ in results if one.file == name]
        alive = [key for key in of_file if key in survivors]
        told = len([key for key in alive if key in explained])
        killed = len(of_file) - len(alive)
        print(f"{name}: {len(of_file)} mutants, {killed} killed, {told} explained")
    print(f"{len(results) - len(unexplained)} passed, {len(unexplained) + len(stale)} failed")
    return 1 if unexplained or stale else 0


if __name__ == "__main__":
    sys.exit(main())
