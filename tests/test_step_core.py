"""The core's step of many tensors against the reference's: bits, layouts, refusals."""

import importlib.util

import numpy as np
import pytest

from fastreg._base import dtypes, steps
from fastreg._engine import backend as backends
from fastreg._engine import reference_steps

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("fastreg._core"), reason="needs the compiled core"
)

DTYPES = {"f16": np.float16, "bf16": np.uint16, "f32": np.float32, "f64": np.float64}
SHAPES = (0,), (1,), (31,), (32,), (33,), (4095,), (4096,), (4097,), (7, 11), (129, 33), (1, 5)
SPECIAL = 0.0, -0.0, np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-40, -1e-42, 1.0


def compute_type(dtype):
    return "f64" if dtype == "f64" else "f32"


def elements(rng, dtype, shape, is_special, is_second=False):
    """Return normal numbers, some of them 0 or special."""
    numbers = rng.standard_normal(shape)
    if is_second:
        numbers = np.abs(numbers)
    numbers[rng.random(shape) < 0.05] = 0.0
    if is_special:
        numbers = np.where(rng.random(shape) < 0.3, rng.choice(SPECIAL, shape), numbers)
    with np.errstate(over="ignore"):
        if dtype == "bf16":
            return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return numbers.astype(DTYPES[dtype])


def laid_out(array, how):
    """Return the elements in C order, in Fortran's, with gaps, every other row, or reversed."""
    if how == "F":
        return np.array(array, order="F")
    if how == "gaps":
        outer = np.zeros([extent + 3 for extent in array.shape], array.dtype)
        view = outer[tuple(slice(1, extent + 1) for extent in array.shape)]
    elif how == "rows":
        view = np.zeros((2 * array.shape[0], *array.shape[1:]), array.dtype)[::2]
    elif how == "reversed":
        view = np.zeros_like(array)[..., ::-1]
    else:
        return array.copy()
    view[...] = array
    return view


class Call:
    """A call of random tensors and options."""

    def __init__(self, seed):
        self.rng = rng = np.random.default_rng(seed)
        self.algorithm = int(rng.integers(2))
        self.settings = tuple(self.random_settings() for _ in range(2))
        count = int(rng.integers(1, 5))
        self.which = tuple(rng.integers(2, size=count).tolist())
        self.steps = tuple(rng.choice([0, 0, 1, 5, 123_456], count).tolist())
        self.loss_scale = self.one_of(1.0, 1024.0, 3.0)
        self.clip = int(rng.integers(3))
        self.factor = self.one_of(1.0, 0.3, 0.0)
        self.is_special = bool(rng.random() < 0.4)
        self.layouts = [self.one_of("C", "C", "F", "gaps", "rows", "reversed") for _ in range(5)]
        names = [self.one_of(*DTYPES) for _ in range(count)]
        shapes = [SHAPES[i] for i in rng.integers(len(SHAPES), size=count)]
        kinds = [
            (name, self.one_of(name, compute_type(name)), *[compute_type(name)] * 3)
            for name in names
        ]
        self.operands = [
            tuple(
                (elements(rng, kind[place], shape, self.is_special, place > 2), kind[place])
                for kind, shape in zip(kinds, shapes, strict=True)
            )
            for place in range(5)
        ]

    def one_of(self, *choices):
        return choices[int(self.rng.integers(len(choices)))]

    def random_settings(self):
        is_sgd = self.algorithm == steps.SGD
        modes = [steps.NONE, steps.GRADIENT, steps.PROXIMAL, steps.DECOUPLED]
        return steps.Settings(
            self.algorithm,
            self.one_of(*modes, *([] if is_sgd else [steps.SCALED])),
            int(self.rng.integers(16)),
            self.one_of(0.0, 0.1, 1e-3),
            self.one_of(0.0, 0.9) if is_sgd else 0.0,
            self.one_of(0.0, 0.3) if is_sgd else 0.0,
            self.one_of(0.0, 0.01),
            *((0.0, 0.0, 0.0) if is_sgd else (0.9, 0.999, self.one_of(1e-8, 0.0, 1e-3))),
            self.one_of(0.0, 0.02, 1.5),
            self.one_of(0.0, 0.03, 2.0),
            self.one_of(0.1, 1.0),
        )

    def arrays(self):
        """Return fresh operands: parameters, gradients, and moments or None."""
        found = [
            tuple((laid_out(array, how), dtype) for array, dtype in operands)
            for operands, how in zip(self.operands, self.layouts, strict=True)
        ]
        needs = [
            [one.has_first, one.has_second, one.has_largest]
            for one in (self.settings[place] for place in self.which)
        ]
        for kind in range(3):
            needed = [need[kind] for need in needs]
            kept = tuple(
                one if is_there else None
                for one, is_there in zip(found[2 + kind], needed, strict=True)
            )
            found[2 + kind] = kept if any(needed) else None
        return found

    def taken(self, take_step, checked):
        arrays = self.arrays()
        result = take_step(
            *arrays, self.steps, self.settings, self.which, self.loss_scale, self.clip,
            self.factor, checked,
        )  # fmt: skip
        assert result is not NotImplemented
        penalties, zeros = result
        return [bits(np.array(penalties), "f64"), zeros] + [
            bits(*one) for operands in arrays if operands for one in operands if one is not None
        ]

    def measured(self, measure_step, exponent):
        parameters, gradients, *_ = self.arrays()
        found = measure_step(
            parameters, gradients, self.settings, self.which, self.loss_scale, self.clip, exponent
        )
        assert found is not NotImplemented
        return [bits(np.array(one if exponent == 0 else one[:1], float), "f64") for one in found]


def bits(array, dtype):
    """Return the bits of the elements in C order, of all NaNs the same."""
    numbers = dtypes.from_bfloat16(array) if dtype == "bf16" else array
    same = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").astype(np.uint64)
    same[np.isnan(numbers)] = 2**64 - 1
    return same.tolist()


@pytest.mark.parametrize("seed", range(60))
def test_bits_are_those_of_the_reference(backend, seed):
    call = Call(seed)
    expected = call.taken(reference_steps.take_step, True)
    norms = [call.measured(reference_steps.measure_step, exponent) for exponent in (0, -7)]
    before = backends.get_num_threads()
    try:
        for threads in (1, 2):
            backends.set_num_threads(threads)
            assert [call.measured(backends.measure_step, one) for one in (0, -7)] == norms
            for checked in (False, True) if backend != "numpy" else (True,):
                assert call.taken(backends.take_step, checked) == expected
    finally:
        backends.set_num_threads(before)


@pytest.mark.parametrize("size", [100_000, 70_001])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_many_chunks_on_two_threads(backend, dtype, size):
    call = Call(7)
    call.settings = (steps.Settings(steps.ADAMW, steps.SCALED, steps.AMSGRAD, 0.1, 0.0, 0.0, 0.01,
                                    0.9, 0.999, 1e-8, 0.02, 0.03),)  # fmt: skip
    call.which, call.steps, call.layouts = (0,), (5,), ["C"] * 5
    kinds = (dtype, dtype, *[compute_type(dtype)] * 3)
    call.operands = [
        ((elements(call.rng, kind, size, False, place > 2), kind),)
        for place, kind in enumerate(kinds)
    ]
    expected = call.taken(reference_steps.take_step, True)
    before = backends.get_num_threads()
    try:
        for threads in (1, 2):
            backends.set_num_threads(threads)
            assert call.taken(backends.take_step, True) == expected
    finally:
        backends.set_num_threads(before)


ADAMW = (1, 2, 4, 0.1, 0.0, 0.0, 0.01, 0.9, 0.999, 1e-8, 0.1, 0.0, 0.0)


def changed(place, number):
    return (*ADAMW[:place], number, *ADAMW[place + 1 :])


def read_only(array):
    array.flags.writeable = False
    return array


REFUSED = {
    "shape of a gradient": {"gradients": np.ones(4, np.float32)},
    "shape of a moment": {"second": np.ones((3, 1), np.float32)},
    "dtype of a gradient": {"gradients": np.ones(3)},
    "dtype of a moment": {"first": np.ones(3)},
    "half precision moment": {"first": np.ones(3, np.float16)},
    "integers": {"parameters": np.ones(3, np.int32)},
    "missing moment": {"largest": None},
    "read-only parameter": {"parameters": read_only(np.ones(3, np.float32))},
    "read-only moment": {"largest": read_only(np.ones(3, np.float32))},
    "elements that share memory": {
        "second": np.lib.stride_tricks.as_strided(np.ones(1, np.float32), (3,), (0,))
    },
    "learning rate that is not finite": {"settings": changed(3, 1e39)},
    "learning rate below 0": {"settings": changed(3, -0.1)},
    "strength below 0": {"settings": changed(10, -0.1)},
    "NaN": {"settings": changed(9, float("nan"))},
    "algorithm": {"settings": changed(0, 2)},
    "mode": {"settings": changed(1, 5)},
    "flags": {"settings": changed(2, 16)},
    "SGD has no preconditioner": {"settings": (0, 3, 0, *ADAMW[3:])},
    "loss scale": {"loss_scale": 0.0},
    "clip": {"clip": 3},
    "which": {"which": 1},
    "steps": {"steps": -1},
}


def refused(arguments):
    """Return what a call of two tensors does whose second has these arguments."""
    core = importlib.import_module("fastreg._core")
    places = ["parameters", "gradients", "first", "second", "largest"]
    first = [np.full(3, 0.5, np.float32) for _ in places]
    second = [arguments.get(name, np.full(3, 0.5, np.float32)) for name in places]
    before = [np.copy(one) for one in (*first, *second) if one is not None]
    found = core.take_step(
        *zip(first, second, strict=True),
        (0, arguments.get("steps", 0)),
        (arguments.get("settings", ADAMW),),
        (0, arguments.get("which", 0)),
        arguments.get("loss_scale", 1.0),
        arguments.get("clip", 0),
        1.0,
        False,
    )
    after = [one for one in (*first, *second) if one is not None]
    assert all(map(np.array_equal, before, after)) == (found is NotImplemented)
    return found is NotImplemented


def test_what_is_plainly_right_is_taken():
    assert not refused({})


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_plainly_right_is_handed_back_with_nothing_written(case):
    assert refused(REFUSED[case])


@pytest.mark.parametrize("one", range(5))
@pytest.mark.parametrize("other", range(5))
def test_memory_that_is_written_is_nobody_elses(one, other):
    places = ["parameters", "gradients", "first", "second", "largest"]
    memory = np.ones(5, np.float32)
    if one != other:
        assert refused({places[one]: memory[:3], places[other]: memory[2:]})


def test_a_gradient_may_be_read_twice():
    core = importlib.import_module("fastreg._core")
    gradient = np.ones(3, np.float32)
    parameters = np.zeros(3, np.float32), np.zeros(3, np.float32)
    settings = (0, 0, 0, 0.5, *[0.0] * 9)
    arguments = (None, None, None, (0, 0), (settings,), (0, 0), 1.0, 0, 1.0, False)
    assert core.take_step(parameters, (gradient, gradient), *arguments) == ([0.0, 0.0], [0, 0])
    assert [one.tolist() for one in parameters] == [[-0.5] * 3] * 2


@pytest.mark.parametrize("settings", [((1, 2),), (1.0,)])
def test_settings_are_rows_of_13_numbers(settings):
    core = importlib.import_module("fastreg._core")
    with pytest.raises(TypeError, match="13 numbers"):
        core.measure_step((), (), settings, (), 1.0, 0, 0)
