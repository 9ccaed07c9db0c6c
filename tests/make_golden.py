"""Write golden.json from the plain-Python oracle: ``python tests/make_golden.py``.

The bits are a promise: a change of this file's output is a major version.
"""

import hashlib
import json
from pathlib import Path

import canonical

PATH = Path(__file__).with_name("golden.json")
SIZES = (0, 1, 31, 33, 4097, 9001)
PROX_STEP = 0.75


def digest(array):
    """Shorten the bytes of a little-endian array."""
    little = array.view(f"u{array.itemsize}").astype(f"<u{array.itemsize}")
    return hashlib.sha256(little.tobytes()).hexdigest()[:24]


def cases():
    for dtype in canonical.DTYPES:
        for size in SIZES:
            for l1, l2 in ((0.01, 0.0), (0.0, 0.01), (1e-5, 0.125)):
                yield {"dtype": dtype, "size": size, "l1": l1, "l2": l2}


def inputs(case):
    """Return the weight and the old gradient of a case as floats."""
    return tuple(canonical.numbers(case["size"], case["dtype"], seed) for seed in (11, 12))


def results():
    for case in cases():
        elements, old = inputs(case)
        strengths = case["l1"], case["l2"]
        new = canonical.gradient(elements, case["dtype"], *strengths)
        added = canonical.gradient(elements, case["dtype"], *strengths, old=old)
        yield case | {
            "value": canonical.penalty(elements, *strengths).hex(),
            "gradient": digest(canonical.array(new, case["dtype"])),
            "accumulated": digest(canonical.array(added, case["dtype"])),
            **of_prox(elements, case["dtype"], *strengths),
        }


def of_prox(elements, dtype, l1, l2):
    """Return the proximal step, and the penalty and zeros of that."""
    moved = canonical.prox(elements, dtype, l1, l2, PROX_STEP)
    return {
        "prox": digest(canonical.array(moved, dtype)),
        "prox_value": canonical.penalty(moved, l1, l2).hex(),
        "prox_zeros": sum(x == 0 for x in moved),
    }


NORMS = PATH.with_name("golden_norms.json")
MAGNITUDES = {"f16": 0, "bf16": 100, "f32": 90, "f64": 800}
"""Powers of 2 that the elements of norms are taken times."""


def norm_elements(dtype, size):
    """Return elements of a magnitude that their squares make worth looking at."""
    factor = 2.0 ** MAGNITUDES[dtype]
    return [canonical.rounded(x * factor, dtype) for x in canonical.numbers(size, dtype, 13)]


def norm_results():
    """Return the norms and the clipped elements of cases; the clip is to a third of the norm."""
    for dtype in canonical.DTYPES:
        for size in SIZES:
            elements = norm_elements(dtype, size)
            norms = canonical.norms([elements])
            factor = canonical.clip_factor(norms, norms[1] / 3)
            clipped = canonical.array(canonical.clipped(elements, dtype, factor), dtype)
            yield {
                "dtype": dtype,
                "size": size,
                "norms": [*map(canonical.value_bits, norms[:3]), *norms[3:]],
                "clipped": digest(clipped),
            }


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(result) for result in results())
    PATH.write_text(f"[\n{lines}\n]\n", encoding="ascii")
    lines = ",\n".join(json.dumps(result) for result in norm_results())
    NORMS.write_text(f"[\n{lines}\n]\n", encoding="ascii")
