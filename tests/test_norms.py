"""fastreg.norms and fastreg.clip_by_global_norm: bits, every magnitude, all or nothing."""

import math
from fractions import Fraction

import canonical
import ml_dtypes
import numpy as np
import pytest
from float_environments import NAMES, environment

import fastreg

SIZES = (*canonical.SIZES, 9001)
BF16 = np.dtype(ml_dtypes.bfloat16)


def expected(elements):
    return canonical.norms([elements])


def bits(record):
    assert [type(entry) for entry in record] == [float, float, float, int, int]
    return (*map(canonical.value_bits, record[:3]), *record[3:])


def require_equal(record, wanted):
    assert bits(record) == bits(wanted)


def factor(norm, most):
    return min(1.0, most / (norm + 1e-6))


# ------------------------------------------------------------------------ norms


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_bits(backend, dtype, size):
    elements = canonical.numbers(size, dtype, 5)
    found = fastreg.norms([canonical.array(elements, dtype)])
    require_equal(found["0"], expected(elements))
    require_equal(found.total, canonical.norms([elements]))


@pytest.mark.parametrize("dtype", ["bool", "i1", "i8", "u2", "u8"])
def test_integers(backend, dtype):
    array = (np.arange(5000) % 251).astype(dtype)
    require_equal(fastreg.norms({"w": array})["w"], expected(canonical.floats(array)))


def test_integers_are_rounded_to_float64_first(backend):
    array = np.array([2**53 + 1, -(2**63)])
    require_equal(fastreg.norms([array])["0"], expected([float(2**53 + 1), -(2.0**63)]))


def test_mixed_dtypes_and_the_total(backend):
    sizes = {"f16": 33, "bf16": 4097, "f32": 9001, "f64": 31}
    elements = {dtype: canonical.numbers(size, dtype, 7) for dtype, size in sizes.items()}
    elements["empty"] = []
    arrays = {
        name: canonical.array(some, name if name in sizes else "f32")
        for name, some in elements.items()
    }
    found = fastreg.norms(arrays)
    assert list(found) == list(elements)
    for name, some in elements.items():
        require_equal(found[name], expected(some))
    require_equal(found.total, canonical.norms(list(elements.values())))


def layouts(array):
    """Yield arrays of the same elements, and in which order they are summed."""
    wide = np.zeros((2 * array.shape[0], array.shape[1] + 3), array.dtype)
    wide[::2, 2:-1] = array
    yield array.T, array
    yield np.asfortranarray(array), array.T
    yield array[::-1], array[::-1]
    yield array[:, ::-1].T, array[:, ::-1].T
    yield wide[::2, 2:-1], array
    yield np.broadcast_to(array[:1], (3, array.shape[1])), np.repeat(array[:1], 3, 0)


@pytest.mark.parametrize("dtype", [*canonical.DTYPES, "i4"])
def test_layouts(backend, dtype):
    if dtype == "i4":
        array = np.arange(-2000, 4001, dtype=np.int32).reshape(17, 353)
    else:
        array = canonical.array(canonical.numbers(17 * 353, dtype, 3), dtype).reshape(17, 353)
    for view, ordered in layouts(array):
        require_equal(fastreg.norms([view])["0"], expected(canonical.floats(ordered)))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1)])
def test_shapes(backend, shape):
    array = np.full(shape, -2.0, np.float32)
    require_equal(fastreg.norms([array])["0"], expected([-2.0] * array.size))


def test_nothing(backend):
    for nothing in ({}, [], (), {"w": None}):
        found = fastreg.norms(nothing)
        assert dict(found) == {}
        require_equal(found.total, (0.0, 0.0, 0.0, 0, 0))
        assert fastreg.clip_by_global_norm(nothing, 1.0) == 0.0


SPECIAL = (math.inf, -math.inf, math.nan)


@pytest.mark.parametrize("place", [0, 31, 40, 4096, 5000])
@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_what_is_not_finite(backend, dtype, place):
    for special in SPECIAL:
        elements = [0.5] * 5001
        elements[place] = special
        found = fastreg.norms([canonical.array(elements, dtype)])
        require_equal(found["0"], expected(elements))
        assert found["0"].nonfinite == found.total.nonfinite == 1
    both = [math.nan, math.inf, -math.inf, -0.0] * 1000
    require_equal(fastreg.norms([canonical.array(both, dtype)])["0"], expected(both))


MAGNITUDES = (5e-324, 1e-320, 2.3e-308, 1e-200, 1e-121, 1.0, 1e120, 1e121, 1e200, 1e308)


@pytest.mark.parametrize("large", MAGNITUDES)
@pytest.mark.parametrize("small", MAGNITUDES)
def test_every_magnitude(backend, small, large):
    tensors = [[small] * 40, [large, -small] * 7, [0.0]]
    found = fastreg.norms([np.array(elements) for elements in tensors])
    for record, elements in zip(found.values(), tensors, strict=True):
        require_equal(record, expected(elements))
        require_near(record.l2, elements)
    require_equal(found.total, canonical.norms(tensors))
    require_near(found.total.l2, [x for elements in tensors for x in elements])


def require_near(norm, elements):
    """Compare with exact arithmetic: within 1e-14, or half a unit of the smallest numbers."""
    exact = sum(Fraction(x) ** 2 for x in elements)
    if math.isinf(norm):
        assert exact > Fraction(1.79e308) ** 2
        return
    slack = max(Fraction(norm) * Fraction(1, 10**14), Fraction(5e-324))
    assert (Fraction(norm) - slack) ** 2 * (1 if Fraction(norm) > slack else 0) <= exact
    assert exact <= (Fraction(norm) + slack) ** 2


def test_large_totals_of_other_dtypes(backend):
    tensors = {"f16": [300.0, 2.0**-24], "bf16": [3e38], "f32": [1e-45, 3e38], "f64": [1e300]}
    elements = [[float(x) for x in canonical.array(x, d)] for d, x in tensors.items()]
    found = fastreg.norms([canonical.array(x, d) for d, x in tensors.items()])
    require_equal(found.total, canonical.norms(elements))
    for layout in (slice(None, None, -1), slice(None)):  # also where it is gathered
        found = fastreg.norms([canonical.array(x, d)[layout] for d, x in tensors.items()])
        require_equal(found.total, canonical.norms([x[layout] for x in elements]))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads(backend, threads):
    elements = canonical.numbers(300_000, "f32", 9)
    before = fastreg.get_num_threads()
    fastreg.set_num_threads(threads)
    try:
        array = canonical.array(elements, "f32")
        found = fastreg.norms([array, array[:5], array[::-1], array.astype(np.float64)])
    finally:
        fastreg.set_num_threads(before)
    for record, some in zip(
        found.values(), (elements, elements[:5], elements[::-1], elements), strict=True
    ):
        require_equal(record, expected_of_many(tuple(some)))


def expected_of_many(elements, kept={}):  # noqa: B006
    if elements not in kept:
        kept[elements] = expected(elements)
    return kept[elements]


def test_the_same_array_counts_once(backend):
    w = np.array([[3.0, 4.0], [0.0, 0.0]])
    found = fastreg.norms({"first": w, "other": np.ones(2), "tied": w.T})
    assert found["first"] == found["tied"] == (7.0, 5.0, 4.0, 2, 0)
    assert found.total == (9.0, math.sqrt(27.0), 4.0, 2, 0)
    assert fastreg.norms([w, w[:1]]).total.l1 == 14.0  # an overlap is no tie


@pytest.mark.parametrize("name", NAMES)
def test_the_environment_of_the_caller(backend, name):
    elements = [[0.1, 1e-310, 3e-320, 1.0 / 3.0] * 20, [3e-320, 1e-310] * 9]
    arrays = [np.array(some) for some in elements]
    single = np.array([1e-40, 0.1, 3.3] * 30, np.float32)
    half = np.array([6e-8, 0.1, 3.3] * 30, np.float16)
    with environment(name):
        found = fastreg.norms(arrays)
        norms = [fastreg.clip_by_global_norm([one], 0.7) for one in (single, half)]
    for record, some in zip(found.values(), elements, strict=True):
        require_equal(record, expected(some))
    require_equal(found.total, canonical.norms(elements))
    for one, dtype, norm, before in (
        (single, "f32", norms[0], np.array([1e-40, 0.1, 3.3] * 30, np.float32)),
        (half, "f16", norms[1], np.array([6e-8, 0.1, 3.3] * 30, np.float16)),
    ):
        assert norm == expected(canonical.floats(before))[1]
        wanted = canonical.clipped(canonical.floats(before), dtype, factor(norm, 0.7))
        assert one.tobytes() == canonical.array(wanted, dtype).tobytes()


def test_the_table(backend):
    arrays = {"layers.0.attention.query_projection.kernel" * 3: np.full(7, 1e300), "b": np.zeros(3)}
    lines = str(fastreg.norms(arrays)).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["tensor", "l1", "l2", "maximum", "zeros", "nonfinite"]
    assert lines[-2].split() == ["b", "0", "0", "0", "3", "0"]
    assert lines[-1].split() == ["total", "7e+300", "2.64575e+300", "1e+300", "3", "0"]
    assert str(fastreg.norms({})).splitlines()[-1].split() == ["total", *"00000"]


# ------------------------------------------------------------------------ clipping


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_clip_bits(backend, dtype, size):
    elements = canonical.numbers(size, dtype, 6)
    norm = expected(elements)[1]
    for most in (0.0, 1e-3, norm / 3, 1e9, math.inf):
        array = canonical.array(elements, dtype)
        assert fastreg.clip_by_global_norm({"w": array}, most) == norm
        wanted = canonical.array(canonical.clipped(elements, dtype, factor(norm, most)), dtype)
        assert (canonical.bits(array) == canonical.bits(wanted)).all()


@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_clip_layouts(backend, dtype):
    source = canonical.array(canonical.numbers(17 * 353, dtype, 3), dtype).reshape(17, 353)
    for view, _ in layouts(source):
        if 0 in view.strides:
            continue
        before = view.copy()
        norm = fastreg.clip_by_global_norm([view], 0.5)
        wanted = canonical.clipped(canonical.floats(before), dtype, factor(norm, 0.5))
        wanted = canonical.array(wanted, dtype).reshape(before.shape)
        assert (canonical.bits(view) == canonical.bits(wanted)).all()


def test_clip_writes_between_no_elements(backend):
    wide = np.ones((8, 9), np.float32)
    fastreg.clip_by_global_norm([wide[::2, 1:-1]], 1e-3)
    assert (wide[1::2] == 1).all()
    assert (wide[:, [0, -1]] == 1).all()
    assert (wide[::2, 1:-1] < 1e-3).all()


def test_right_where_torch_is_not(backend):
    half = np.full(1_000_000, 300.0, np.float16)
    assert fastreg.clip_by_global_norm([half], 1e5) == 300_000.0
    assert (half == np.float16(100.0)).all()
    single = np.full(4, 3e19, np.float32)
    assert fastreg.clip_by_global_norm([single], 1.0) == pytest.approx(6e19, rel=1e-7)
    assert (single == np.float32(0.5)).all()


@pytest.mark.parametrize("large", [1e200, 1e308])
def test_clip_beyond_float64(backend, large):
    array = np.full(9, large)
    norm = fastreg.clip_by_global_norm([array], 3.0)
    assert norm == (math.inf if large == 1e308 else 3e200)
    assert array == pytest.approx(np.ones(9), rel=1e-15)


def test_clip_of_tiny_ones(backend):
    array = np.full(9, 1e-300)
    assert fastreg.clip_by_global_norm([array], 1e-301) == expected([1e-300] * 9)[1]
    assert array == pytest.approx(np.full(9, 1e-300 * (1e-301 / 1e-6)), abs=5e-324)


def test_on_nonfinite(backend):
    def made():
        return {"a": np.ones(3), "b": np.array([1.0, math.inf, 2.0]), "c": np.array([math.nan])}

    arrays = made()
    with pytest.raises(ValueError, match=r"tensors\['b'\] has 1 element that is infinite or NaN"):
        fastreg.clip_by_global_norm(arrays, 1.0)
    for name, array in made().items():
        assert (canonical.bits(arrays[name]) == canonical.bits(array)).all()
    assert math.isnan(fastreg.clip_by_global_norm(arrays, 1.0, on_nonfinite="ignore"))
    assert all(np.isnan(array).all() for array in arrays.values())
    arrays = made()
    del arrays["c"]
    assert fastreg.clip_by_global_norm(arrays, 1.0, on_nonfinite="ignore") == math.inf
    assert (arrays["a"] == 0).all()
    assert canonical.floats(arrays["b"])[::2] == [0.0, 0.0]
    assert math.isnan(arrays["b"][1])
    half = canonical.array([1.0, math.nan], "bf16")
    fastreg.clip_by_global_norm([half], 1.0, on_nonfinite="ignore")
    assert np.isnan(half.astype(np.float32)).all()


def test_a_factor_of_1_writes_nothing(backend):
    array = np.array([math.pi, 5e-324])
    before = array.tobytes()
    fastreg.clip_by_global_norm([array], 100.0)
    assert array.tobytes() == before


def test_ties_are_clipped_once(backend):
    w = np.array([[3.0, 4.0], [0.0, 0.0]])
    assert fastreg.clip_by_global_norm({"first": w, "tied": w, "turned": w.T}, 1.0) == 5.0
    assert w[0] == pytest.approx([0.6, 0.8], rel=1e-6)


REFUSED = {
    "integers": (lambda: np.arange(3), TypeError, "int64, whose elements cannot be scaled"),
    "read-only": (lambda: np.broadcast_to(np.ones(2), (2, 2)), BufferError, "read-only"),
    "list": (lambda: [1.0], TypeError, "must be an array"),
    "tuple": (lambda: (np.ones(2), "f64"), TypeError, "must be an array"),
    "complex": (lambda: np.ones(2, complex), TypeError, "complex128"),
    "itself": (
        lambda: np.lib.stride_tricks.as_strided(np.ones(4), (3, 2), (8, 8), writeable=True),
        ValueError,
        "overlaps itself",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_nothing_written(backend, case):
    make, kind, words = REFUSED[case]
    good = np.full(3, 9.0)
    with pytest.raises(kind, match=rf"tensors\['bad'\].*{words}"):
        fastreg.clip_by_global_norm({"good": good, "bad": make()}, 1.0)
    assert (good == 9.0).all()


def test_overlaps_are_refused(backend):
    w = np.full(6, 9.0)
    with pytest.raises(ValueError, match=r"tensors\['b'\] overlaps tensors\['a'\]"):
        fastreg.clip_by_global_norm({"a": w[:4], "b": w[2:]}, 1.0)
    assert (w == 9.0).all()
    fastreg.clip_by_global_norm({"a": w[::2], "b": w[1::2]}, 1.0)  # interleaved, and apart
    assert np.linalg.norm(w) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize(
    ("value", "kind"), [(-1.0, ValueError), (math.nan, ValueError), ("1", TypeError)]
)
def test_bounds_are_checked(value, kind):
    with pytest.raises(kind, match="max_norm must be a number >= 0"):
        fastreg.clip_by_global_norm([np.ones(2)], value)
    with pytest.raises(ValueError, match="on_nonfinite must be one of 'raise', 'ignore'"):
        fastreg.clip_by_global_norm([np.ones(2)], 1.0, on_nonfinite="skip")


@pytest.mark.parametrize("what", [np.ones(2), 3, iter([np.ones(2)]), {1: np.ones(2)}])
def test_what_holds_no_arrays(what):
    with pytest.raises(TypeError, match="tensors must"):
        fastreg.norms(what)
    with pytest.raises(TypeError, match="tensors must"):
        fastreg.clip_by_global_norm(what, 1.0)
