"""Steps of optimizers below the public classes: bits against the oracle, and refusals."""

import dataclasses
import itertools
import math

import canonical
import canonical_step
import numpy as np
import pytest
from canonical_step import Options, Tensor

from fastreg._base import steps as numbers
from fastreg._engine import steps

SGD = (
    Options(),
    Options(weight_decay=0.02),
    Options(momentum=0.9),
    Options(momentum=0.9, dampening=0.25, maximize=True),
    Options(momentum=0.8, nesterov=True, weight_decay=0.1, loss_scale=1024.0),
)
ADAMW = (
    Options("adamw", lr=1e-2),
    Options("adamw", weight_decay=0.01, amsgrad=True, eps=1e-3),
    Options("adamw", betas=(0.5, 0.75), maximize=True, loss_scale=3.0),
)
MODES = (
    {},
    {"mode": "gradient"},
    {"mode": "proximal"},
    {"mode": "decoupled", "factor": 0.1},
    {"mode": "decoupled", "factor": 0.3, "cautious": True},
)
CLIPS = (None, "data", "total")


def settings(o):
    flags = {
        numbers.NESTEROV: o.nesterov,
        numbers.MAXIMIZE: o.maximize,
        numbers.AMSGRAD: o.amsgrad,
        numbers.CAUTIOUS: o.cautious,
    }
    modes = [None, "gradient", "proximal", "scaled", "decoupled"]
    is_sgd = o.algorithm == "sgd"
    return numbers.Settings(
        numbers.SGD if is_sgd else numbers.ADAMW,
        modes.index(o.mode),
        sum(flag for flag, is_set in flags.items() if is_set),
        o.lr,
        o.momentum,
        o.dampening,
        o.weight_decay,
        *((0.0, 0.0, 0.0) if is_sgd else (*o.betas, o.eps)),
        o.l1,
        o.l2,
        o.factor,
    )


class Model:
    """Tensors with their state, as the oracle has them and as arrays."""

    def __init__(self, sizes, dtype, options, gradient_dtype=None):
        self.dtype, self.options = dtype, options
        self.gradient_dtype = gradient_dtype or dtype
        self.tensors = [
            Tensor(canonical.numbers(size, dtype, 3 + place), dtype)
            for place, size in enumerate(sizes)
        ]
        self.parameters = tuple(canonical.array(one.w, dtype) for one in self.tensors)
        has = settings(options)
        compute = np.float64 if dtype == "f64" else np.float32

        def states(are_kept):
            return tuple(np.zeros(size, compute) for size in sizes) if are_kept else None

        self.first, self.second = states(has.has_first), states(has.has_second)
        self.largest = states(has.has_largest)
        self.count = 0

    def step(self, seed, max_norm=None, **keywords):
        o = self.options
        gradients = [
            canonical.numbers(len(one.w), self.gradient_dtype, seed + place)
            for place, one in enumerate(self.tensors)
        ]
        step = steps.Step(
            [str(place) for place in range(len(self.tensors))],
            self.parameters,
            tuple(canonical.array(one, self.gradient_dtype) for one in gradients),
            self.first,
            self.second,
            self.largest,
            tuple(one.t for one in self.tensors),
            (settings(o),),
            (0,) * len(self.tensors),
            o.loss_scale or 1.0,
            max_norm,
            o.clip == "data",
            **keywords,
        )
        factor = 1.0
        if max_norm is not None:
            lines = [
                canonical_step.clip_line(one, gradient, o)
                for one, gradient in zip(self.tensors, gradients, strict=True)
            ]
            norm = canonical.norms(lines)
            factor = canonical.clip_factor(norm, max_norm)
        found = steps.take(step)
        for one, gradient in zip(self.tensors, gradients, strict=True):
            canonical_step.take(one, gradient, o, factor)
        assert found.norm == (None if max_norm is None else norm[1])
        assert not found.skipped
        assert [*map(canonical.value_bits, found.penalties)] == [
            canonical.value_bits(one.penalty) for one in self.tensors
        ]
        assert found.zeros == [one.zeros for one in self.tensors]
        self.check()
        return factor

    def check(self):
        compute = "f64" if self.dtype == "f64" else "f32"
        rows = (
            ("w", self.parameters, self.dtype),
            ("m", self.first, compute),
            ("v", self.second, compute),
            ("h", self.largest, compute),
        )
        for name, arrays, dtype in rows:
            for one, array in zip(self.tensors, arrays or (), strict=False):
                wanted = canonical.array(getattr(one, name), dtype)
                np.testing.assert_array_equal(
                    canonical.bits(array), canonical.bits(wanted), err_msg=name
                )


def with_mode(o, keywords, terms, clip=None):
    if o.algorithm == "adamw" and keywords.get("mode") == "proximal" and o.eps == 1e-8:
        keywords = {**keywords, "mode": "scaled"}
    l1, l2 = terms if keywords else (0.0, 0.0)
    return dataclasses.replace(o, **keywords, l1=l1, l2=l2, clip=clip)


@pytest.mark.parametrize("mode", range(len(MODES)))
@pytest.mark.parametrize("options", range(len(SGD + ADAMW)))
@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_bits(backend, dtype, options, mode):
    for terms, clip in itertools.product(canonical.TERMS, CLIPS):
        if not MODES[mode] and terms != canonical.TERMS[0]:
            continue
        o = with_mode((SGD + ADAMW)[options], MODES[mode], terms, clip)
        model = Model((33, 5, 0, 70), dtype, o)
        for seed in range(3):
            model.step(10 * seed, None if clip is None else 2.5)


@pytest.mark.parametrize("size", canonical.SIZES)
@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_bits_of_every_size(backend, dtype, size):
    for o in (
        Options(momentum=0.9, mode="proximal", l1=0.3, l2=0.7, clip="total"),
        Options("adamw", mode="scaled", l1=1e-3, l2=0.7, weight_decay=0.1, amsgrad=True),
        Options("adamw", mode="gradient", l1=1e-3, l2=0.7, clip="total"),
    ):
        model = Model((size,), dtype, o)
        for seed in range(2):
            model.step(seed, 1.5 if o.clip else None)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_gradients_in_float32(backend, dtype):
    for o in (
        Options(momentum=0.9, mode="gradient", l1=0.3, l2=0.7, clip="total"),
        Options("adamw", mode="scaled", l1=1e-3, clip="data"),
    ):
        model = Model((4097, 3), dtype, o, "f32")
        assert model.step(0, 0.5) < 1.0
        model.step(5, 0.5)


def test_a_power_is_by_squaring():
    for base, exponent in itertools.product((0.9, 0.999, 1 - 2**-53, 0.0), (1, 2, 3, 1000, 12345)):
        assert numbers.power(base, exponent) == canonical_step.power(base, exponent)
        assert math.isclose(numbers.power(base, exponent), base**exponent, rel_tol=1e-11)


def step_of(parameters, gradients, one=None, **keywords):
    count = len(parameters)
    o = one or Options(mode="proximal", l1=0.5)
    names = [f"w{place}" for place in range(count)]
    given = {"first": None, "second": None, "largest": None, "taken": (0,) * count}
    return steps.Step(
        names,
        tuple(parameters),
        tuple(gradients),
        settings=(settings(o),),
        which=(0,) * count,
        **{**given, **keywords},
    )


def test_a_step_that_is_skipped_or_raises_has_written_nothing(backend):
    w, g = np.array([0.0, 1.0, -2.0]), np.array([1.0, math.inf, math.nan])
    before = w.copy()
    others = np.ones(3), np.ones(3)
    step = step_of((others[0], w), (others[1], g))
    with pytest.raises(ValueError, match=r"grads\['w1'\] has 2 elements that are infinite or NaN"):
        steps.take(step._replace(on_nonfinite="raise"))
    skipped = steps.take(step._replace(on_nonfinite="skip"))
    assert skipped == steps.take(step, found_inf=True)._replace(norm=skipped.norm)
    assert skipped == ([1.5, 1.5], [0, 1], skipped.norm, True)
    assert math.isnan(skipped.norm)
    np.testing.assert_array_equal(w, before)
    np.testing.assert_array_equal(others[0], np.ones(3))
    steps.take(step)
    assert w[0] == 0.0 - 0.1 + 0.05


def test_numbers_that_are_not_finite_are_refused(backend):
    w = np.ones(3, np.float32)
    step = step_of((w,), (np.ones(3, np.float32),), Options(lr=1e30, mode="proximal", l1=1e30))
    with pytest.raises(ValueError, match=r"lr \* l1 must be finite in float32.*tensors\['w0'\]"):
        steps.take(step)
    np.testing.assert_array_equal(w, np.ones(3))
    wide = np.ones(3)
    assert steps.take(step_of((wide,), (np.ones(3),), Options(lr=1e30, mode="proximal", l1=1e30)))


@pytest.mark.parametrize(
    ("parameter", "gradient", "state", "error", "words"),
    [
        (np.ones(3, np.int32), np.ones(3, np.int32), None, TypeError, "has dtype int32"),
        (np.ones(3), np.ones(2), None, ValueError, "grads.'w0'. has shape"),
        (np.ones(3, "f4"), np.ones(3), None, TypeError, "its gradient must be float32"),
        (np.ones(3, "f2"), np.ones(3), None, TypeError, "must be float16 or float32"),
        (np.ones(3), np.ones(3), np.zeros(2), ValueError, "the momentum of tensors.'w0'. has sha"),
        (np.ones(3, "f2"), np.ones(3, "f2"), np.zeros(3, "f2"), TypeError, "is kept in float32"),
        (np.broadcast_to(1.0, 3), np.ones(3), None, BufferError, "read-only"),
        ([1.0], np.ones(1), None, TypeError, "must be an array"),
        (np.ones(3), None, None, TypeError, "grads.'w0'. must be an array"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(backend, parameter, gradient, state, error, words):
    one = Options(momentum=0.9)
    state = np.zeros(np.shape(parameter), "f4") if state is None else state
    if getattr(parameter, "dtype", None) == np.float64 and state.dtype == np.float32:
        state = state.astype(np.float64)
    step = step_of((parameter,), (gradient,), one, first=(state,))
    with pytest.raises(error, match=words):
        steps.take(step)
    np.testing.assert_array_equal(state, 0)


def test_overlaps_are_refused(backend):
    both = np.ones(8)
    for parameters, gradients in (
        ((both[:5], both[4:]), (np.ones(5), np.ones(4))),
        ((both[:4],), (both[2:6],)),
        ((both[:4],), (both[:4],)),
    ):
        with pytest.raises(ValueError, match="overlaps"):
            steps.take(step_of(parameters, gradients))
        np.testing.assert_array_equal(both, 1)
    gradient = np.ones(4)  # which is read alone, and may be there twice
    assert steps.take(step_of((both[:4], both[4:]), (gradient, gradient))).zeros == [0, 0]


def test_any_layout(backend):
    rows = np.arange(24.0).reshape(4, 6)
    gradient = np.broadcast_to(1.0, (6, 4))
    expected = rows.copy()
    momentum = np.zeros((6, 4))
    one = Options(momentum=0.9, mode="proximal", l1=0.5)
    steps.take(step_of((rows.T,), (gradient,), one, first=(momentum,)))
    plain = expected.T.copy()
    steps.take(step_of((plain,), (np.ones((6, 4)),), one, first=(np.zeros((6, 4)),)))
    np.testing.assert_array_equal(rows.T, plain)
    np.testing.assert_array_equal(momentum, 1)
