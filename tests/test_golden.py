"""Golden vectors: the bits of earlier releases, which stay."""

import json

import canonical
import make_golden
import pytest

import fastreg
from fastreg.regularizers import L1L2

GOLDEN = json.loads(make_golden.PATH.read_text(encoding="ascii"))


@pytest.mark.parametrize(
    "case", GOLDEN, ids=lambda case: "-".join(str(case[key]) for key in ("dtype", "size", "l1"))
)
def test_bits_of_golden_vectors(backend, case):
    dtype = case["dtype"]
    elements, old = make_golden.inputs(case)
    w, grad = canonical.array(elements, dtype), canonical.array(old, dtype)
    regularizer = L1L2(case["l1"], case["l2"])
    value, gradient = regularizer.value_and_grad(w)
    assert value.hex() == case["value"]
    assert make_golden.digest(gradient) == case["gradient"]
    assert regularizer.accumulate(w, grad).hex() == case["value"]
    assert make_golden.digest(grad) == case["accumulated"]

    record = fastreg.attach([w], regularizer).prox(make_golden.PROX_STEP)
    assert make_golden.digest(w) == case["prox"]
    assert record.penalty.hex() == case["prox_value"]
    assert record == (record.penalty, case["prox_zeros"], len(elements))


NORMS = json.loads(make_golden.NORMS.read_text(encoding="ascii"))


@pytest.mark.parametrize("case", NORMS, ids=lambda case: f"{case['dtype']}-{case['size']}")
def test_bits_of_golden_norms(backend, case):
    dtype = case["dtype"]
    array = canonical.array(make_golden.norm_elements(dtype, case["size"]), dtype)
    found = fastreg.norms([array])["0"]
    assert [*map(canonical.value_bits, found[:3]), *found[3:]] == case["norms"]
    fastreg.clip_by_global_norm([array], found.l2 / 3)
    assert make_golden.digest(array) == case["clipped"]


def test_every_case_is_there():
    assert [{key: case[key] for key in ("dtype", "size", "l1", "l2")} for case in GOLDEN] == list(
        make_golden.cases()
    )
