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


STEPS = json.loads(make_golden.STEPS.read_text(encoding="ascii"))


@pytest.mark.parametrize(
    "case", STEPS, ids=lambda case: "-".join(str(case[key]) for key in ("dtype", "size", "options"))
)
def test_bits_of_golden_steps(backend, case):
    dtype, options = case["dtype"], make_golden.step_options(case["options"])
    parameter, steps = make_golden.step_inputs(dtype, case["size"])
    w = canonical.array(parameter, dtype)
    optimizer = optimizer_of(w, options)
    for gradient in steps:
        record = optimizer.step([canonical.array(gradient, dtype)], loss_scale=options.loss_scale)
    assert make_golden.digest(w) == case["parameter"]
    state = [one for one in optimizer.state_dict().values() if getattr(one, "ndim", 0)]
    assert [*map(make_golden.digest, state)] == case["state"]
    assert record.penalty.hex() == case["penalty"]
    assert record.zeros == case["zeros"]
    assert (None if record.norm is None else record.norm.hex()) == case["norm"]


def optimizer_of(w, o):
    """Return the optimizer of a tensor that the oracle's options are of."""
    common = {
        "weight_decay": o.weight_decay,
        "maximize": o.maximize,
        "rules": None if o.mode is None else L1L2(o.l1, o.l2),
        "mode": {None: "proximal", "scaled": "proximal"}.get(o.mode, o.mode),
        "cautious": o.cautious,
        "max_norm": None if o.clip is None else make_golden.STEP_BOUND,
        "clip": o.clip or "total",
    }
    if o.mode == "decoupled":  # the factor is then lr / initial_lr
        common |= {"independent": True, "initial_lr": o.lr / o.factor}
        assert o.lr / common["initial_lr"] == o.factor
    if o.algorithm == "sgd":
        momentum = {key: getattr(o, key) for key in ("momentum", "dampening", "nesterov")}
        return fastreg.optimizers.SGD([w], o.lr, **momentum, **common)
    moments = {key: getattr(o, key) for key in ("betas", "eps", "amsgrad")}
    scaled = o.mode != "proximal"
    return fastreg.optimizers.AdamW([w], o.lr, scaled=scaled, **moments, **common)


def test_every_case_is_there():
    assert [{key: case[key] for key in ("dtype", "size", "l1", "l2")} for case in GOLDEN] == list(
        make_golden.cases()
    )
    assert len(STEPS) == 4 * len(make_golden.STEP_SIZES) * len(make_golden.STEP_OPTIONS)
