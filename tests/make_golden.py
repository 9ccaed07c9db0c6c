"""Write golden.json from the plain-Python oracle: ``python tests/make_golden.py``.

The bits are a promise: a change of this file's output is a major version.
"""

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path

import canonical
import canonical_step
from canonical_step import Options

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


STEPS = PATH.with_name("golden_steps.json")
STEP_SIZES = (0, 1, 33, 4097)
STEP_COUNT = 2
STEP_LOSS_SCALE = 4.0
STEP_BOUND = 8.0
STEP_OPTIONS = {
    "sgd": Options(lr=0.3, weight_decay=0.01),
    "sgd momentum, proximal": Options(
        lr=0.3, momentum=0.9, dampening=0.25, mode="proximal", l1=0.02, l2=0.125, clip="data"
    ),
    "sgd nesterov, gradient": Options(
        lr=0.3, momentum=0.9, nesterov=True, mode="gradient", l1=0.02, l2=0.125, clip="total"
    ),
    "adamw, scaled": Options("adamw", lr=0.01, weight_decay=0.1, mode="scaled", l1=1e-3, l2=0.125),
    "adamw amsgrad, decoupled": Options(
        "adamw",
        lr=0.01,
        amsgrad=True,
        mode="decoupled",
        l1=0.5,
        l2=0.125,
        factor=0.01,
        clip="total",
    ),
    "adamw, cautious": Options(
        "adamw", maximize=True, mode="decoupled", l1=0.5, factor=0.01, cautious=True
    ),
}


def step_options(name):
    return replace(STEP_OPTIONS[name], loss_scale=STEP_LOSS_SCALE)


def step_inputs(dtype, size):
    """Return the parameter, and the gradient of each step, as floats."""
    parameter, *gradients = (
        canonical.numbers(size, dtype, seed) for seed in range(21, 22 + STEP_COUNT)
    )
    return parameter, gradients


def step_results():
    """Return what two steps make of a tensor, with its state, and the numbers of the last one."""
    for dtype, size, name in itertools.product(canonical.DTYPES, STEP_SIZES, STEP_OPTIONS):
        options = step_options(name)
        parameter, gradients = step_inputs(dtype, size)
        tensor = canonical_step.Tensor(parameter, dtype)
        for gradient in gradients:
            norm = canonical.norms([canonical_step.clip_line(tensor, gradient, options)])
            factor = canonical.clip_factor(norm, STEP_BOUND) if options.clip else 1.0
            canonical_step.take(tensor, gradient, options, factor)
        compute = "f64" if dtype == "f64" else "f32"
        states = [one for one in (tensor.m, tensor.v, tensor.h) if one is not None]
        yield {
            "dtype": dtype,
            "size": size,
            "options": name,
            "parameter": digest(canonical.array(tensor.w, dtype)),
            "state": [digest(canonical.array(one, compute)) for one in states],
            "penalty": tensor.penalty.hex(),
            "zeros": tensor.zeros,
            "norm": norm[1].hex() if options.clip else None,
        }


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(result) for result in results())
    PATH.write_text(f"[\n{lines}\n]\n", encoding="ascii")
    lines = ",\n".join(json.dumps(result) for result in norm_results())
    NORMS.write_text(f"[\n{lines}\n]\n", encoding="ascii")
    lines = ",\n".join(json.dumps(result) for result in step_results())
    STEPS.write_text(f"[\n{lines}\n]\n", encoding="ascii")
