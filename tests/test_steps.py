"""Steps of optimizers below the public classes: bits against the oracle, and refusals."""

import dataclasses
import functools
import importlib.util
import itertools
import math
from typing import NamedTuple

import canonical
import canonical_step
import hypothesis
import numpy as np
import pytest
from canonical_step import Options, Tensor
from float_environments import NAMES, environment
from hypothesis import strategies as st

from fastreg._base import steps as numbers
from fastreg._engine import backend as backend_module
from fastreg._engine import steps

AVAILABLE = ["numpy"] if importlib.util.find_spec("fastreg._core") is None else ["numpy", "native"]

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


class Wanted(NamedTuple):
    """What the oracle says of a step of several tensors."""

    gradients: list
    taken: tuple
    factor: float
    norm: float | None
    penalties: list
    zeros: list
    bits: list  # of the parameter, and what is kept of it, of each tensor


@functools.lru_cache(4096)
def wanted(sizes, dtype, options, seeds, most, gradient_dtype, elements):
    """Return the steps of the oracle; every backend is compared with the same."""
    tensors = [Tensor(elements(size, dtype, 3 + i), dtype) for i, size in enumerate(sizes)]
    found = []
    for seed in seeds:
        gradients = [elements(size, gradient_dtype, seed + i) for i, size in enumerate(sizes)]
        taken = tuple(one.t for one in tensors)
        pairs = [*zip(tensors, gradients, strict=True)]
        factor, norm = 1.0, None
        if options.clip is not None:
            total = canonical.norms([canonical_step.clip_line(*pair, options) for pair in pairs])
            factor, norm = canonical.clip_factor(total, most), canonical.value_bits(total[1])
        for pair in pairs:
            canonical_step.take(*pair, options, factor)
        found.append(
            Wanted(
                [canonical.array(one, gradient_dtype) for one in gradients],
                taken,
                factor,
                norm,
                [canonical.value_bits(one.penalty) for one in tensors],
                [one.zeros for one in tensors],
                [bits_of(one) for one in tensors],
            )
        )
    return found


def bits_of(tensor):
    compute = "f64" if tensor.dtype == "f64" else "f32"
    rows = ((tensor.w, tensor.dtype), *((x, compute) for x in (tensor.m, tensor.v, tensor.h)))
    return [
        None if one is None else canonical.bits(canonical.array(one, dtype)) for one, dtype in rows
    ]


def require_bits(
    sizes, dtype, o, seeds, most=None, gradient_dtype=None, elements=canonical.numbers
):
    """Take steps and compare all that they write and return; return the factors of the clips."""
    key = tuple(sizes), dtype, o, tuple(seeds), most, gradient_dtype or dtype, elements
    one = settings(o)
    compute = np.float64 if dtype == "f64" else np.float32
    parameters = tuple(
        canonical.array(elements(size, dtype, 3 + i), dtype) for i, size in enumerate(sizes)
    )
    states = [
        tuple(np.zeros(size, compute) for size in sizes) if is_kept else None
        for is_kept in (one.has_first, one.has_second, one.has_largest)
    ]
    for step in wanted(*key):
        found = steps.take(
            steps.Step(
                [*map(str, range(len(sizes)))],
                parameters,
                tuple(step.gradients),
                *states,
                step.taken,
                (one,),
                (0,) * len(sizes),
                o.loss_scale or 1.0,
                None if o.clip is None else most,
                o.clip == "data",
            )
        )
        assert (None if found.norm is None else canonical.value_bits(found.norm)) == step.norm
        assert [*map(canonical.value_bits, found.penalties)] == step.penalties
        assert found.zeros == step.zeros
        for place, bits in enumerate(step.bits):
            arrays = [parameters[place], *(kept and kept[place] for kept in states)]
            for array, expected in zip(arrays, bits, strict=True):
                assert (array is None) == (expected is None)
                if array is not None:
                    np.testing.assert_array_equal(canonical.bits(array), expected)
    return [step.factor for step in wanted(*key)]


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
        require_bits((33, 5, 0, 70), dtype, o, (0, 10, 20), 2.5)


@pytest.mark.parametrize("size", canonical.SIZES)
@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_bits_of_every_size(backend, dtype, size):
    for o in (
        Options(momentum=0.9, mode="proximal", l1=0.3, l2=0.7, clip="total"),
        Options("adamw", mode="scaled", l1=1e-3, l2=0.7, weight_decay=0.1, amsgrad=True),
        Options("adamw", mode="gradient", l1=1e-3, l2=0.7, clip="total"),
    ):
        require_bits((size,), dtype, o, (0, 1), 1.5)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_gradients_in_float32(backend, dtype):
    for o in (
        Options(momentum=0.9, mode="gradient", l1=0.3, l2=0.7, clip="total"),
        Options("adamw", mode="scaled", l1=1e-3, clip="data"),
    ):
        assert require_bits((4097, 3), dtype, o, (0, 5), 0.5, "f32")[0] < 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_second_moments(backend, dtype):
    """A largest moment of -0.0, which only a state from elsewhere has, becomes the new +0.0."""
    w, g, m, v = (np.zeros(33, dtype) for _ in range(4))
    h = np.full(33, -0.0, dtype)
    one = settings(Options("adamw", amsgrad=True))
    steps.take(steps.Step(["w"], (w,), (g,), (m,), (v,), (h,), (0,), (one,), (0,)))
    np.testing.assert_array_equal(np.signbit(h), False)


def wild(count, dtype, seed):
    """Return elements of which some are infinite, NaN, huge or the smallest there are."""
    largest = {"f16": 65504.0, "bf16": 2.0**127, "f32": 2.0**127, "f64": 2.0**1023}[dtype]
    smallest = {"f16": 2.0**-24, "bf16": 2.0**-133, "f32": 2.0**-149, "f64": 2.0**-1074}[dtype]
    special = (math.inf, -math.inf, math.nan, largest, -largest, smallest, -smallest, -0.0)
    found = canonical.numbers(count, dtype, seed)
    for place in range(seed % 5, count, 5):
        found[place] = special[(place + seed) % len(special)]
    return found


STRENGTHS = st.sampled_from([0.0, 1e-40, 1e-3, 0.3, 7.0])
OPTIONS = st.builds(
    Options,
    algorithm=st.sampled_from(["sgd", "adamw"]),
    lr=st.sampled_from([0.0, 1e-30, 1e-3, 0.3, 2.0]),
    mode=st.sampled_from([None, "gradient", "proximal", "scaled", "decoupled"]),
    momentum=st.sampled_from([0.0, 0.9, 1.0]),
    dampening=st.sampled_from([0.0, 0.25]),
    nesterov=st.booleans(),
    weight_decay=st.sampled_from([0.0, 0.01, 3.0]),
    betas=st.sampled_from([(0.9, 0.999), (0.0, 0.0), (0.5, 1 - 2**-53)]),
    eps=st.sampled_from([0.0, 1e-8, 1e-3]),
    amsgrad=st.booleans(),
    maximize=st.booleans(),
    cautious=st.booleans(),
    l1=STRENGTHS,
    l2=STRENGTHS,
    factor=st.sampled_from([0.0, 0.1, 1.0]),
    loss_scale=st.sampled_from([None, 3.0, 2.0**16]),
    clip=st.sampled_from([None, "data", "total"]),
)


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
@hypothesis.given(
    options=OPTIONS,
    dtypes=st.sampled_from(
        [*zip(canonical.DTYPES, canonical.DTYPES, strict=True), ("f16", "f32"), ("bf16", "f32")]
    ),
    sizes=st.lists(st.integers(0, 70), max_size=3),
    elements=st.sampled_from([canonical.numbers, wild]),
    most=st.sampled_from([0.0, 1e-3, 2.5, math.inf]),
)
def test_bits_of_all_options_together(options, dtypes, sizes, elements, most):
    if options.algorithm == "sgd" and options.mode == "scaled":
        options = dataclasses.replace(options, mode="proximal")
    before = backend_module.name
    try:
        for name in AVAILABLE:
            backend_module.select(name)
            require_bits(sizes, dtypes[0], options, (0, 7), most, dtypes[1], elements)
    finally:
        backend_module.select(before)


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


@pytest.mark.parametrize("name", NAMES)
def test_the_environment_of_the_caller(backend, name):
    o = Options("adamw", 0.3, "scaled", l1=1e-3, l2=0.7, weight_decay=0.01, clip="data")
    w, g = ([x * 1e-3 for x in canonical.numbers(70, "f64", seed)] for seed in (3, 4))
    w[:4], g[:4] = [1e-310, 3e-320, 1e-40, 0.1], [1e-310, 1e-160, 3e-320, 0.3]
    array, gradient = np.array(w), np.array(g)
    states = [(np.zeros(70),), (np.zeros(70),)]
    step = step_of((array,), (gradient,), o, first=states[0], second=states[1])
    with environment(name):
        found = steps.take(step._replace(max_norm=0.01, clips_data=True))
    tensor = Tensor(w, "f64")
    norm = canonical.norms([canonical_step.clip_line(tensor, g, o)])
    canonical_step.take(tensor, g, o, canonical.clip_factor(norm, 0.01))
    assert found.norm == norm[1]
    assert found.penalties == [tensor.penalty]
    for one, expected in ((array, tensor.w), (states[0][0], tensor.m), (states[1][0], tensor.v)):
        np.testing.assert_array_equal(canonical.bits(one), canonical.bits(np.array(expected)))
