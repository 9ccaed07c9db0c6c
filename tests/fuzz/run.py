"""Runs the fuzzers: ``python tests/fuzz/run.py [--seconds N] [--keep]``.

Builds them with Clang, AddressSanitizer and UndefinedBehaviorSanitizer into build/fuzz, gives each
the corpus of corpus.json and some seconds, and reports executions and the edges that they covered.
An input that crashes is an error; it lies in build/fuzz and becomes a test where the fault arises.
``--keep`` replaces the corpus by the smallest that covers as much.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build/fuzz"
CORPUS = Path(__file__).with_name("corpus.json")
FUZZERS = ("layouts",)
LONGEST = 400  # bytes of an input


def build(names: list[str]) -> None:
    configure = [
        *("cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja"),
        *("-DCMAKE_CXX_COMPILER=clang++", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"),
        *("-DFASTREG_FUZZ=ON", "-DFASTREG_SANITIZE=address,undefined"),
        *("-DFASTREG_BUILD_PYTHON=OFF", "-DFASTREG_BUILD_TESTS=OFF", "-DFASTREG_CUDA=OFF"),
    ]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    targets = [f"fastreg_fuzz_{name}" for name in names]
    subprocess.run(["cmake", "--build", str(BUILD), "--target", *targets], check=True)


def fuzz(name: str, seconds: int, corpus: dict[str, list[str]], keeps: bool) -> bool:
    """Run a fuzzer; return whether it found nothing."""
    program = BUILD / "tests/fuzz" / f"fastreg_fuzz_{name}"
    folder = BUILD / f"corpus_{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for place, text in enumerate(corpus.get(name, [])):
        (folder / f"{place:05d}").write_bytes(base64.b64decode(text))
    command = [str(program), f"-max_len={LONGEST}", f"-max_total_time={seconds}"]
    command += [f"-artifact_prefix={BUILD}/{name}-", "-print_final_stats=1", str(folder)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
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
        merge = [str(program), "-merge=1", str(smallest), str(folder)]
        subprocess.run(merge, check=True, stderr=subprocess.DEVNULL)
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
    build([*options.fuzzers])
    corpus = json.loads(CORPUS.read_text(encoding="utf-8"))
    passed = [fuzz(one, options.seconds, corpus, options.keep) for one in options.fuzzers]
    print(f"{sum(passed)} passed, {len(passed) - sum(passed)} failed")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
