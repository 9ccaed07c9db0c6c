"""Runs the fuzzers: ``python tests/fuzz/run.py [--seconds N] [--keep]``.

Builds those in C++ with Clang, AddressSanitizer and UndefinedBehaviorSanitizer into build/fuzz,
gives each fuzzer the corpus of corpus.json and some seconds, and reports executions and the edges
that they covered.  "capsules" has this interpreter inside of it and needs NumPy and pybind11;
"models" is a program for atheris and is left out, with a word, where that is not installed.
An input that crashes is an error; it lies in build/fuzz and becomes a test where the fault arises.
``--keep`` replaces the corpus by the smallest that covers as much.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build/fuzz"
CORPUS = Path(__file__).with_name("corpus.json")
PROGRAM = Path(__file__).with_name("fuzz_models.py")
FUZZERS = ("layouts", "capsules", "models")
LONGEST = {"layouts": 400, "capsules": 400, "models": 2000}
"""Bytes of an input."""
ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
"""Python keeps memory until it ends, and a sanitizer sees only what malloc has given."""


def build(names: list[str]) -> None:
    has_python = "capsules" in names
    configure = [
        *("cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja"),
        *("-DCMAKE_CXX_COMPILER=clang++", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"),
        *("-DFASTREG_FUZZ=ON", "-DFASTREG_SANITIZE=address,undefined"),
        *("-DFASTREG_BUILD_TESTS=OFF", "-DFASTREG_CUDA=OFF"),
        *(f"-DFASTREG_BUILD_PYTHON={has_python}", f"-DPython_EXECUTABLE={sys.executable}"),
    ]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    targets = [f"fastreg_fuzz_{name}" for name in names]
    subprocess.run(["cmake", "--build", str(BUILD), "--target", *targets], check=True)


def command_of(name: str) -> list[str]:
    if name == "models":
        return [sys.executable, str(PROGRAM)]
    return [str(BUILD / "tests/fuzz" / f"fastreg_fuzz_{name}")]


def fuzz(name: str, seconds: int, corpus: dict[str, list[str]], keeps: bool) -> bool:
    """Run a fuzzer; return whether it found nothing."""
    program = command_of(name)
    folder = BUILD / f"corpus_{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for place, text in enumerate(corpus.get(name, [])):
        (folder / f"{place:05d}").write_bytes(base64.b64decode(text))
    command = [*program, f"-max_len={LONGEST[name]}", f"-max_total_time={seconds}"]
    command += [f"-artifact_prefix={BUILD}/{name}-", "-print_final_stats=1", str(folder)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    if done.returncode:
        print(done.stderr[-4000:])
        return False
    edges = re.findall(r"cov: (\d+)", done.stderr)[-1]
    executions = re.findall(r"stat::number_of_executed_units: (\d+)", done.stderr)[-1]
    print(f"{name}: {executions} executions in {seconds} s, {edges} edges, nothing found")
    if keeps:
        smallest = BUILD / f"smallest_{name}"
        shutil.rmtree(smallest, ignore_errors=True)
        smallest.mkdir()
        merge = [*program, "-merge=1", str(smallest), str(folder)]
        subprocess.run(merge, check=True, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
        inputs = sorted((one.read_bytes() for one in smallest.iterdir()), key=lambda x: (len(x), x))
        corpus[name] = [base64.b64encode(one).decode() for one in inputs]
        CORPUS.write_text(json.dumps(corpus, indent=0) + "\n", encoding="utf-8")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each fuzzer")
    parser.add_argument("--keep", action="store_true", help="replace the corpus")
    parser.add_argument("fuzzers", nargs="*", default=FUZZERS)
    options = parser.parse_args()
    chosen = [*options.fuzzers]
    if options.fuzzers is FUZZERS and importlib.util.find_spec("atheris") is None:
        print("models: LEFT OUT, atheris is not installed (.ci/fuzz.txt)")
        chosen.remove("models")
    BUILD.mkdir(parents=True, exist_ok=True)
    compiled = [name for name in chosen if name != "models"]
    if compiled:
        build(compiled)
    corpus = json.loads(CORPUS.read_text(encoding="utf-8"))
    passed = [fuzz(one, options.seconds, corpus, options.keep) for one in chosen]
    print(f"{sum(passed)} passed, {len(passed) - sum(passed)} failed")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
