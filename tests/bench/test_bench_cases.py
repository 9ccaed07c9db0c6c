"""What a run measures: cases, the tensors of models, arrays and their exact sums."""

from __future__ import annotations

from math import fsum, prod

import numpy as np
import pytest

from fastreg.bench.cases import DTYPES, OUTPUTS, TERMS, Case, cases
from fastreg.bench.shapes import MODELS, parameters
from fastreg.bench.workloads import ALIGNMENT, BLOCK, Tensors, workloads

pytest.importorskip("ml_dtypes")


def test_every_cell_once_in_order() -> None:
    found = cases([8, 9], ["gpt2"], list(DTYPES), list(TERMS), list(OUTPUTS))
    assert len(found) == len(set(found)) == 3 * 4 * 3 * 5
    assert found[0] == Case("f16", "L1", "value", 8)
    assert found[-1] == Case("f64", "L1L2", "value+add", 124_439_808, "gpt2")


@pytest.mark.parametrize(
    ("outputs", "streams", "floor"),
    [
        ("value", 1, "read"),
        ("gradient", 2, "copy"),
        ("value+gradient", 2, "copy"),
        ("add", 3, "add"),
        ("value+add", 3, "add"),
    ],
)
def test_bytes_and_floor_of_a_cell(outputs: str, streams: int, floor: str) -> None:
    for dtype, item in (("f16", 2), ("bf16", 2), ("f32", 4), ("f64", 8)):
        case = Case(dtype, "L1L2", outputs, 1000)
        assert (case.bytes, case.floor) == (1000 * item * streams, floor)


@pytest.mark.parametrize(
    ("model", "tensors", "total"),
    [
        ("resnet50", 161, 25_557_032),
        ("bert-base", 199, 109_482_240),
        ("gpt2", 148, 124_439_808),
    ],
)
def test_models_have_the_published_number_of_parameters(
    model: str, tensors: int, total: int
) -> None:
    assert len(MODELS[model]) == tensors
    assert parameters(model) == total


def test_shapes_of_models() -> None:
    assert MODELS["resnet50"]["layer4.0.downsample.0.weight"] == (2048, 1024, 1, 1)
    assert MODELS["resnet50"]["layer3.5.conv2.weight"] == (256, 256, 3, 3)
    assert MODELS["bert-base"]["encoder.layer.11.intermediate.dense.weight"] == (3072, 768)
    assert MODELS["gpt2"]["h.0.attn.c_attn.weight"] == (768, 2304)


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_one_tensor(dtype: str) -> None:
    (workload,) = workloads([Case(dtype, "L1", "value", 100)])
    (weights,), (gradient,) = workload.tensors.weights, workload.tensors.gradients
    assert workload.as_one is workload.tensors
    assert weights.shape == gradient.shape == workload.scratch.shape == (100,)
    assert weights.dtype == gradient.dtype == workload.scratch.dtype
    assert weights.itemsize == DTYPES[dtype]
    assert all(a.ctypes.data % ALIGNMENT == 0 for a in (weights, gradient, workload.scratch))
    assert len(np.unique(weights.astype(np.float64))) > 90
    assert not gradient.any()


def test_arrays_of_a_model(tiny_model: str) -> None:
    (workload,) = workloads([Case("f32", "L1", "value", 43, tiny_model)])
    weights, gradients = workload.tensors.weights, workload.tensors.gradients
    assert [w.shape for w in weights] == [g.shape for g in gradients] == [(5, 7), (7,), (1,)]
    first = weights[0].ctypes.data
    assert first % ALIGNMENT == 0
    starts = [w.ctypes.data - first for w in weights]
    assert starts == [0, 3 * ALIGNMENT, 4 * ALIGNMENT]
    (whole,) = workload.as_one.weights
    assert whole.shape == (43,)
    assert np.shares_memory(whole, weights[0])
    assert workload.one_tensor().tensors is workload.as_one
    workload.fill_gradients(3.0)
    assert all((g == 3).all() for g in (*gradients, *workload.as_one.gradients))


def test_cases_share_arrays_while_dtype_and_place_last() -> None:
    chosen = cases([8], [], ["f32", "f64"], ["L1"], ["value", "add"])
    first, second, third, _ = workloads(chosen)
    assert first.tensors is second.tensors
    assert third.tensors is not second.tensors


def test_exact_sums() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(BLOCK + 5), rng.standard_normal((3, 4))]
    everything = [float(x) for array in arrays for x in array.reshape(-1)]
    magnitudes, squares = Tensors(arrays, []).sums
    assert magnitudes == pytest.approx(fsum(map(abs, everything)), rel=1e-15)
    assert squares == pytest.approx(fsum(x * x for x in everything), rel=1e-15)


def test_sums_of_a_model_are_of_its_tensors(tiny_model: str) -> None:
    (workload,) = workloads([Case("f64", "L1", "value", 43, tiny_model)])
    count = sum(prod(w.shape) for w in workload.tensors.weights)
    assert count == 43
    assert workload.tensors.sums != workload.as_one.sums
