"""fastreg.optimizers: bits against the oracle, state, schedules, ties, and all or nothing."""

import copy
import io
import math
import pickle

import canonical
import canonical_step
import numpy as np
import pytest
from canonical_step import Options, Tensor

import fastreg
from fastreg import optimizers
from fastreg._engine import steps as steps_engine
from fastreg.regularizers import L1, L1L2, L2, OrthogonalRegularizer

NAMES = ("a/kernel", "a/bias", "b/kernel")
SIZES = dict(zip(NAMES, (70, 3, 33), strict=True))


def model(dtype="f32", seed=3):
    elements = {
        name: canonical.numbers(size, dtype, seed + place)
        for place, (name, size) in enumerate(SIZES.items())
    }
    arrays = {name: canonical.array(one, dtype) for name, one in elements.items()}
    return arrays, {name: Tensor(one, dtype) for name, one in elements.items()}


def gradients(dtype, seed):
    lists = {
        name: canonical.numbers(size, dtype, 40 * seed + place)
        for place, (name, size) in enumerate(SIZES.items())
    }
    return {name: canonical.array(one, dtype) for name, one in lists.items()}, lists


def require_bits(arrays, tensors, dtype):
    for name, array in arrays.items():
        wanted = canonical.array(tensors[name].w, dtype)
        np.testing.assert_array_equal(canonical.bits(array), canonical.bits(wanted), err_msg=name)


def same_bits(one, other):
    return one.keys() == other.keys() and all(
        np.array_equal(canonical.bits(one[name]), canonical.bits(other[name])) for name in one
    )


RULES = {
    "a/kernel": (L1L2(0.3, 0.7), "gradient"),
    "a/bias": (L2(0.5), "decoupled"),
    "b/*": L1(0.02),
}
CASES = {
    "SGD": (
        lambda params, **more: optimizers.SGD(
            params, 0.1, momentum=0.9, weight_decay=0.01, rules=RULES, **more
        ),
        Options(momentum=0.9, weight_decay=0.01, lr=0.1),
        "proximal",
    ),
    "SGD, plain": (
        lambda params, **more: optimizers.SGD(params, 0.1, maximize=True, rules=RULES, **more),
        Options(lr=0.1, maximize=True),
        "proximal",
    ),
    "AdamW": (
        lambda params, **more: optimizers.AdamW(params, 0.1, amsgrad=True, rules=RULES, **more),
        Options("adamw", lr=0.1, weight_decay=0.01, amsgrad=True),
        "scaled",
    ),
    "AdamW, not scaled": (
        lambda params, **more: optimizers.AdamW(
            params, lambda step: 0.1, betas=(0.5, 0.9), scaled=False, rules=RULES, **more
        ),
        Options("adamw", lr=0.1, weight_decay=0.01, betas=(0.5, 0.9)),
        "proximal",
    ),
}


@pytest.mark.parametrize("clip", [None, "total", "data"])
@pytest.mark.parametrize("dtype", canonical.DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_bits(backend, case, dtype, clip):
    make, common, mode = CASES[case]
    params, tensors = model(dtype)
    given = {} if clip is None else {"max_norm": 2.0, "clip": clip}
    optimizer = make(params, **given)
    one = {
        "a/kernel": {"mode": "gradient", "l1": 0.3, "l2": 0.7},
        "a/bias": {"mode": "decoupled", "l2": 0.5, "factor": 0.1},
        "b/kernel": {"mode": mode, "l1": 0.02},
    }
    options = {
        name: Options(**{**vars(common), **more, "clip": clip, "loss_scale": 8.0})
        for name, more in one.items()
    }
    for step in range(3):
        arrays, lists = gradients(dtype, step)
        lines = [canonical_step.clip_line(tensors[x], lists[x], options[x]) for x in NAMES]
        norm = canonical.norms(lines)
        factor = 1.0 if clip is None else canonical.clip_factor(norm, 2.0)
        record = optimizer.step(arrays, loss_scale=8.0)
        for name in NAMES:
            canonical_step.take(tensors[name], lists[name], options[name], factor)
        require_bits(params, tensors, dtype)
        total = canonical.canonical_sum([tensors[name].penalty for name in NAMES])
        assert record.penalty.hex() == total.hex()
        assert record.zeros == sum(one.zeros for one in tensors.values())
        assert record == (*record[:1], None if clip is None else norm[1], record.zeros, False, 106)
    assert optimizer.steps == 3


def test_rules_act_on_what_they_match_and_nothing_else():
    params = {"kernel": np.full(4, 0.25), "bias": np.full(2, 0.25)}
    optimizer = optimizers.SGD(params, 0.5, rules={"kernel": L1(1.0)})
    record = optimizer.step({"bias": np.zeros(2), "kernel": np.zeros(4)})
    assert record == (0.0, None, 4, False, 4)
    assert record.sparsity == 1.0
    np.testing.assert_array_equal(params["bias"], 0.25)


def test_tensors_are_read_at_every_step_and_strengths_too(backend):
    params, rule = [np.ones(2)], L1(0.0)
    optimizer = optimizers.SGD(params, 1.0, rules=rule)
    params[0] = np.array([3.0, 4.0])
    rule.l1 = 0.5
    optimizer.lr = 2.0
    assert optimizer.step([np.zeros(2)]).penalty == 2.5
    np.testing.assert_array_equal(params[0], [2.0, 3.0])
    optimizer.strength = 2.0
    optimizer.step([np.zeros(2)])
    np.testing.assert_array_equal(params[0], [0.0, 1.0])


def test_functions_of_the_step_count_what_was_taken(backend):
    calls = []

    def lr(step):
        calls.append(step)
        return 1.0 / (step + 1)

    params = [np.zeros(2)]
    optimizer = optimizers.SGD(
        params, lr, rules=("l1", "decoupled"), strength=lambda step: 2.0 * step, initial_lr=1.0,
        independent=True, on_nonfinite="skip",
    )  # fmt: skip
    bad, good = [np.array([1.0, math.inf])], [np.ones(2)]
    assert optimizer.step(bad).skipped
    assert [optimizer.step(good).skipped for _ in range(2)] == [False, False]
    assert optimizer.step(good, found_inf=np.array([1.0])).skipped
    assert optimizer.step(good, found_inf=False).penalty == 4 * 0.01 * np.abs(params[0]).sum()
    assert calls == [0, 0, 1, 2, 2]
    expected = -1.0
    for step in (1, 2):
        u = expected - 1.0 / (step + 1)
        expected = math.copysign(abs(u) - (1.0 / (step + 1)) / 1.0 * (0.01 * (2.0 * step)), u)
    np.testing.assert_array_equal(params[0], expected)
    optimizer.lr = lambda step: -1.0
    with pytest.raises(ValueError, match=r"lr\(3\) must be a finite number >= 0, not float -1.0"):
        optimizer.step(good)


def frozen():
    array = np.ones(3, np.float32)
    array.flags.writeable = False
    return array


WRONG = {
    "read-only": (frozen(), np.ones(3, np.float32), BufferError),
    "integers": (np.ones(3, np.int32), np.ones(3, np.float32), TypeError),
    "overlaps itself": (
        np.lib.stride_tricks.as_strided(np.ones(1, np.float32), (3,), (0,)),
        np.ones(3, np.float32),
        ValueError,
    ),
    "another dtype": (np.ones(3, np.float32), np.ones(3, np.float64), TypeError),
    "another shape": (np.ones(3, np.float32), np.ones(4, np.float32), ValueError),
}


@pytest.mark.parametrize("rules", [None, L1(0.5)])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_refused_in_a_skipped_step_too(backend, wrong, rules):
    array, gradient, error = WRONG[wrong]
    for on_nonfinite in ("skip", "raise"):
        optimizer = optimizers.SGD([array], 0.1, rules=rules, on_nonfinite=on_nonfinite)
        for first in (1.0, math.inf):
            bad = gradient.copy()
            bad[0] = first
            with pytest.raises(error, match=r"tensors|grads"):
                optimizer.step([bad])


@pytest.mark.parametrize("rules", [None, L1(0.5)])
@pytest.mark.parametrize("wrong", WRONG)
def test_found_inf_skips_before_anything_is_judged(backend, wrong, rules):
    array, gradient, _ = WRONG[wrong]
    optimizer = optimizers.SGD([array], 0.1, rules=rules, max_norm=1.0)
    record = optimizer.step([gradient], found_inf=True)
    assert record == (0.0 if rules is None else 1.5, None, 0, True, 0 if rules is None else 3)


@pytest.mark.parametrize(
    ("found", "what"),
    [
        ("no", "str 'no'"),
        ([1.0], "a list"),
        (np.zeros(2), r"a numpy.ndarray of shape \(2,\)"),
        (1j, "complex 1j"),
    ],
)
def test_found_inf_is_one_number(backend, found, what):
    params = [np.ones(2)]
    optimizer = optimizers.SGD(params, 0.5)
    with pytest.raises(TypeError, match=f"^found_inf must be a bool, .*, not {what}; pass True"):
        optimizer.step([np.ones(2)], found_inf=found)
    assert params[0].tolist() == [1.0, 1.0]
    assert optimizer.steps == 0


@pytest.mark.parametrize("make", [optimizers.SGD, optimizers.AdamW])
def test_a_skipped_step_changes_nothing(backend, make):
    params, _ = model()
    more = {"momentum": 0.9} if make is optimizers.SGD else {"amsgrad": True}
    optimizer = make(params, 0.1, rules=RULES, on_nonfinite="skip", **more)
    other_params, _ = model()
    other = make(other_params, 0.1, rules=RULES, **more)
    before, state = copy.deepcopy(params), optimizer.state_dict()
    bad, _ = gradients("f32", 0)
    bad["a/bias"][1] = math.nan
    record = optimizer.step(bad)
    assert record.skipped
    assert math.isnan(record.norm)
    assert same_bits(params, before)
    assert optimizer.state_dict().keys() == state.keys()
    attached = fastreg.attach(params, {name: rule[0] if isinstance(rule, tuple) else rule
                                       for name, rule in RULES.items()})  # fmt: skip
    assert record.penalty == attached.value()
    assert record.zeros == sum(int((one == 0).sum()) for one in params.values())
    for step in range(2):  # as if it had not been
        arrays, _ = gradients("f32", step)
        assert optimizer.step(arrays).penalty == other.step(arrays).penalty
        assert same_bits(params, other_params)


@pytest.mark.parametrize("place", [0, 399])
def test_infinities_in_one_tensor_of_many(backend, place):
    params = [np.ones(5, np.float32) for _ in range(400)]
    grads = [np.ones(5, np.float32) for _ in range(400)]
    optimizer = optimizers.AdamW(params, max_norm=1.0, rules="l1")
    optimizer.step(grads)
    before, state = copy.deepcopy(params), optimizer.state_dict()
    grads[place][3] = -math.inf
    with pytest.raises(ValueError, match=rf"grads\['{place}'\] has 1 element that is infinite"):
        optimizer.step(grads)
    assert all(np.array_equal(one, other) for one, other in zip(params, before, strict=True))
    after = optimizer.state_dict()
    assert all(np.array_equal(after[key], value) for key, value in state.items())
    assert optimizer.steps == 1
    ignoring = optimizers.SGD(params, 0.5, max_norm=1.0, on_nonfinite="ignore")
    assert ignoring.step(grads).norm == math.inf


def test_zero_weights_and_no_learning_rate(backend):
    for make in (optimizers.SGD, optimizers.AdamW):
        for mode in optimizers.rules.MODES:
            params = [np.zeros(40, np.float32), np.full(3, 0.5, np.float32)]
            optimizer = make(params, 0.0, rules=L1L2(0.1, 0.2), mode=mode)
            record = optimizer.step([np.zeros(40, np.float32), np.ones(3, np.float32)])
            np.testing.assert_array_equal(params[0], 0.0)
            np.testing.assert_array_equal(params[1], 0.5)
            assert record.zeros == 40
    params = [np.zeros(3)]
    optimizers.AdamW(params, 0.1, rules="l1").step([np.zeros(3)])
    np.testing.assert_array_equal(params[0], 0.0)


def test_a_tensor_without_a_gradient_stays(backend):
    params = {"used": np.ones(2), "frozen": np.ones(2), "free": np.ones(2)}
    optimizer = optimizers.AdamW(params, 0.1, rules={"[uf]*": ("l2", "gradient")})
    record = optimizer.step({"used": np.ones(2), "frozen": None, "free": np.ones(2)})
    assert record.penalty == pytest.approx(0.04)
    assert record.size == 4
    np.testing.assert_array_equal(params["frozen"], 1.0)
    first = params["used"].copy()
    optimizer.step({"used": None, "frozen": np.ones(2), "free": np.ones(2)})
    np.testing.assert_array_equal(params["frozen"], first)  # its own first step
    state = optimizer.state_dict()
    assert [state[f"step/{name}"] for name in params] == [1, 1, 2]
    free = optimizers.SGD(params, 0.1, rules={"used": "l1"})
    free.step({"used": np.ones(2)})  # nothing of the others, which have no rule
    with pytest.raises(ValueError, match=r"grads\['used'\] is missing"):
        free.step({"free": np.ones(2)})
    with pytest.raises(ValueError, match=r"grads\['fre'\] .*did you mean 'free'"):
        free.step({"used": np.ones(2), "fre": np.ones(2)})


def test_tied_tensors_step_once(backend):
    shared = np.ones((2, 3))
    params = {"encoder": shared, "bias": np.ones(1), "decoder": shared.T}
    optimizer = optimizers.SGD(params, 0.5, rules={"*coder": L1(0.5)})
    g = np.ones((2, 3))
    for grads in (
        {"encoder": g, "bias": np.ones(1)},
        {"encoder": g, "bias": np.ones(1), "decoder": None},
        {"encoder": g, "bias": np.ones(1), "decoder": g},
    ):
        before = shared.copy()
        record = optimizer.step(grads)
        np.testing.assert_array_equal(shared, np.maximum(np.abs(before - 0.5) - 0.25, 0.0)
                                      * np.sign(before - 0.5))  # fmt: skip
        assert record.size == 6
    for grads in ({"encoder": g, "decoder": g.copy()}, {"encoder": None, "decoder": g}):
        with pytest.raises(ValueError, match=r"grads\['decoder'\] is another array"):
            optimizer.step(grads)
    params["decoder"] = np.ones((3, 2))  # not tied any longer
    assert optimizer.step({"encoder": g, "bias": None, "decoder": g.T}).size == 12
    with pytest.raises(ValueError, match=r"tied .* but have different rules"):
        optimizers.SGD({"a": shared, "b": shared}, 0.1, rules={"a": "l1", "b": "l2"})
    with pytest.raises(ValueError, match="rules of different modes, 'gradient', 'proximal'"):
        optimizers.SGD({"a": shared, "b": shared}, 0.1, rules={"a": ("l1", "gradient"), "b": "l1"})
    flat = np.ones(6)
    overlapping = optimizers.SGD([flat[:4], flat[2:]], 0.1)
    with pytest.raises(ValueError, match="overlaps"):
        overlapping.step([np.ones(4), np.ones(4)])


MAKERS = {
    "SGD": lambda params, **more: optimizers.SGD(params, 0.1, momentum=0.9, **more),
    "AdamW": lambda params, **more: optimizers.AdamW(params, 0.1, amsgrad=True, **more),
}


@pytest.mark.parametrize("way", ["npz", "pickle", "dict", "object"])
@pytest.mark.parametrize("dtype", canonical.DTYPES)
@pytest.mark.parametrize("kind", MAKERS)
def test_saved_state_goes_on_with_the_same_bits(kind, dtype, way):
    params, _ = model(dtype)
    optimizer = MAKERS[kind](params, rules=RULES)
    for step in range(3):
        optimizer.step(gradients(dtype, step)[0])
    again = copy.deepcopy(params)
    if way == "object":
        other = pickle.loads(pickle.dumps(optimizer))
        again = other._tensors._source
    else:
        other = MAKERS[kind](again, rules=RULES)
        state = optimizer.state_dict()
        if way == "npz":
            file = io.BytesIO()
            np.savez(file, **state)
            file.seek(0)
            state = np.load(file)
        elif way == "pickle":
            state = pickle.loads(pickle.dumps(state))
        other.load_state_dict(state)
    for step in range(3, 5):
        grads, _ = gradients(dtype, step)
        assert other.step(grads) == optimizer.step(grads)
        assert same_bits(again, params)
    assert other.steps == 5


def test_a_saved_state_is_a_copy():
    params = [np.ones(3)]
    optimizer = optimizers.SGD(params, 0.1, momentum=0.9)
    optimizer.step([np.ones(3)])
    state = optimizer.state_dict()
    assert state.keys() == {"algorithm", "steps", "step/0", "momentum_buffer/0"}
    other = optimizers.SGD([np.ones(3)], 0.1, momentum=0.9)
    other.load_state_dict(state)
    optimizer.step([np.ones(3)])
    other.step([np.ones(3)])
    np.testing.assert_array_equal(state["momentum_buffer/0"], 1.0)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"algorithm": "SGD"}, ValueError, "state.'algorithm'. must be 'AdamW', not 'SGD'"),
        ({"steps": None}, ValueError, "state.'steps'. is missing"),
        ({"step/w": None}, ValueError, "state.'step/w'. is missing"),
        ({"step/w": -1}, ValueError, "state.'step/w'. must be a number of steps"),
        ({"step/w": 1.5}, ValueError, "state.'step/w'. must be a number of steps"),
        ({"exp_avg/w": None}, ValueError, "state.'exp_avg/w'. is missing, but .* took 1 steps"),
        ({"exp_avg/w": np.ones(2, "f4")}, ValueError, "state.'exp_avg/w'. has shape .2,."),
        ({"exp_avg/w": np.ones(3)}, TypeError, "'exp_avg/w'. has dtype float64; .* in float32"),
        ({"exp_avg/w": [1, 2, 3]}, TypeError, "'exp_avg/w'. must be a NumPy array"),
        ({"exp_avg/v": np.ones(3, "f4")}, ValueError, "'exp_avg/v'. is of no tensor; .*'w'"),
        ({"max_exp_avg_sq/w": np.ones(3, "f4")}, ValueError, "nothing that this optimizer keeps"),
        ({"lr": 0.1}, ValueError, "nothing that this optimizer keeps"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_before_anything_changes(change, error, words):
    def trained():
        optimizer = optimizers.AdamW({"w": np.ones(3, np.float16)}, 0.1)
        optimizer.step({"w": np.ones(3, np.float16)})
        return optimizer

    optimizer, before = trained(), trained().state_dict()
    state = {key: value for key, value in before.items() if change.get(key, value) is not None}
    state.update({key: value for key, value in change.items() if value is not None})
    with pytest.raises(error, match=words):
        optimizer.load_state_dict(state)
    after = optimizer.state_dict()
    assert all(np.array_equal(after[key], value) for key, value in before.items())
    with pytest.raises(TypeError, match="state must be a mapping"):
        optimizer.load_state_dict([1])


def bad_rule(w):
    return 0.0


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"lr": -0.1}, ValueError, "lr must be a finite number >= 0"),
        ({"lr": None}, TypeError, "lr must be"),
        ({"momentum": math.nan}, ValueError, "momentum must be"),
        ({"nesterov": True}, ValueError, "nesterov=True needs a momentum > 0"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ValueError, "nesterov=True needs"),
        ({"nesterov": 1}, TypeError, "nesterov must be True or False"),
        ({"mode": "prox"}, ValueError, "mode must be one of .*did you mean 'proximal'"),
        ({"rules": ("l1", "prox")}, ValueError, "the mode of rules must be one of"),
        ({"rules": ("l1", "gradient", 1)}, ValueError, "a pair .regularizer, mode., not a tuple"),
        ({"rules": {"w": ("l1", None)}}, TypeError, "the mode of rules.'w'. must be one of"),
        ({"rules": {"v": "l1"}}, ValueError, "rules.'v'. matches no tensor"),
        ({"rules": bad_rule}, TypeError, "the rule of tensors.'w'., bad_rule, has no step"),
        ({"rules": OrthogonalRegularizer()}, TypeError, "OrthogonalRegularizer.* has no step"),
        ({"clip": "all"}, ValueError, "clip must be one of"),
        ({"max_norm": -1.0}, ValueError, "max_norm must be a number >= 0"),
        ({"on_nonfinite": "warn"}, ValueError, "on_nonfinite must be one of"),
        ({"independent": True, "lr": 0.0}, ValueError, "initial_lr must be a number > 0"),
        ({"independent": True, "lr": abs}, ValueError, "initial_lr must be given"),
        ({"tensors": np.ones(3)}, TypeError, "tensors must be a mapping or sequence"),
        ({"tensors": {"w": [1.0]}}, TypeError, "tensors.'w'. must be an array"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, error, words):
    given = {"tensors": {"w": np.ones((3, 2))}, "lr": 0.1, **options}
    with pytest.raises(error, match=words):
        optimizers.SGD(**given)


@pytest.mark.parametrize("betas", [(0.9, 1.0), (-0.1, 0.9), 0.9, (0.9,)])
def test_betas(betas):
    with pytest.raises((ValueError, TypeError), match="betas"):
        optimizers.AdamW([np.ones(2)], betas=betas)


@pytest.mark.parametrize("loss_scale", [0.0, -1.0, math.inf, "1"])
def test_loss_scale(loss_scale):
    with pytest.raises((ValueError, TypeError), match="loss_scale"):
        optimizers.SGD([np.ones(2)], 0.1).step([np.ones(2)], loss_scale=loss_scale)


def test_cautious_and_independent(backend):
    w = np.array([1.0, 1.0, -1.0, -1.0])
    g = np.array([1.0, -1.0, 1.0, -1.0])
    params = [w.copy()]
    optimizers.SGD(
        params, 0.125, rules=L1L2(0.5, 0.25), mode="decoupled", independent=True, cautious=True
    ).step([g])
    towards = (1.0 * (1 - 0.5) - 0.125) - 0.5 if 0.375 > 0.5 else 0.0
    np.testing.assert_array_equal(params[0], [towards, 1.125, -1.125, -towards])


def test_steps_of_arrays_of_other_kinds():
    import array

    buffer = array.array("d", [1.0, -0.25])
    optimizer = optimizers.SGD([buffer], 0.5, momentum=0.5, rules=L1(0.5))
    assert optimizer.step([array.array("d", [0.0, 0.0])]).zeros == 1
    assert [*buffer] == [0.75, 0.0]
    assert repr(optimizer) == "<SGD(lr=0.5) with rules for 1 of 1 tensors: '0'>"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rules": "l1", "cautious": True}, "cautious=True"),
        ({"rules": {"0": ("l1", "gradient")}, "independent": True}, "independent=True"),
        ({"mode": "decoupled", "cautious": True}, "cautious=True"),
        ({"rules": ("l1", "decoupled"), "scaled": False}, "scaled=False"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, said):
    with pytest.raises(ValueError, match=f"{said} is for rules of the mode"):
        optimizers.AdamW([np.ones(2)], 0.1, **options)


@pytest.mark.parametrize("make", [optimizers.SGD, optimizers.AdamW])
def test_an_interrupted_step_is_counted_if_it_was_written(monkeypatch, make):
    """A signal is raised as soon as the core returns: then arrays have been written."""
    whole = steps_engine.backend.take_step

    def interrupted(*arguments):
        whole(*arguments)
        raise KeyboardInterrupt

    options = {"momentum": 0.9} if make is optimizers.SGD else {}
    params = {"w": np.ones(3, np.float32)}
    twin = {"w": np.ones(3, np.float32)}
    grads = {"w": np.full(3, 0.5, np.float32)}
    optimizer, other = make(params, 0.1, **options), make(twin, 0.1, **options)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(steps_engine.backend, "take_step", interrupted)
            with pytest.raises(KeyboardInterrupt):
                optimizer.step(grads)
        other.step(grads)
    optimizer.step(grads)
    other.step(grads)
    assert params["w"].tobytes() == twin["w"].tobytes()
    assert optimizer.steps == other.steps == 3
    state, expected = optimizer.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    assert all(np.array_equal(state[key], expected[key]) for key in state)


@pytest.mark.parametrize("error", [MemoryError, None])
def test_a_step_that_was_not_written_is_not_counted(monkeypatch, error):
    def refused(*_):
        if error is not None:
            raise error
        return NotImplemented

    params = {"w": np.ones(3, np.float32)}
    optimizer = optimizers.AdamW(params, 0.1)
    monkeypatch.setattr(steps_engine.backend, "take_step", refused)
    with pytest.raises(error or RuntimeError):
        optimizer.step({"w": np.ones(3, np.float32)})
    assert optimizer.steps == 0
    assert optimizer.state_dict()["step/w"] == 0
    assert "exp_avg/w" not in optimizer.state_dict()


def test_a_state_is_of_the_names_that_are_there():
    params = {"a": np.ones(1), "b": np.ones(1)}
    optimizer = optimizers.SGD(params, 0.1, momentum=0.9)
    optimizer.step({name: np.ones(1) for name in params})
    del params["b"]
    optimizer.step({"a": np.ones(1)})
    state = optimizer.state_dict()
    assert "momentum_buffer/b" not in state
    optimizer.load_state_dict(state)
    params["b"] = params["a"]
    optimizer.load_state_dict(optimizer.state_dict())


def test_arrays_that_a_mapping_makes_anew_are_refused(tmp_path):
    np.savez(tmp_path / "w.npz", w=np.ones(3, np.float32))
    with np.load(tmp_path / "w.npz") as saved, pytest.raises(TypeError, match="at every look-up"):
        optimizers.SGD(saved, 0.1)


def test_an_initial_rate_without_use_is_refused():
    with pytest.raises(ValueError, match="is for independent=True alone"):
        optimizers.SGD([np.ones(2)], 0.1, initial_lr=1.0)


@pytest.mark.parametrize("name", ["momentum", "mode", "rules", "learning_rate", "steps"])
def test_attributes_that_would_do_nothing_cannot_be_set(name):
    optimizer = optimizers.SGD([np.ones(2)], 0.1)
    with pytest.raises(AttributeError, match=f"'{name}' of an optimizer cannot be set"):
        setattr(optimizer, name, 0.5)
    optimizer.lr, optimizer.strength, optimizer.max_norm = 0.2, 0.5, 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0, 16, 40])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 0, 2)], ids=str)
def test_moments_meet_lines_with_their_parameters(dtype, offset, axes):
    memory = np.zeros(64_000, np.uint8)
    first = (offset - memory.ctypes.data) % 64
    w = memory[first : first + 65 * 33 * 3 * np.dtype(dtype).itemsize].view(dtype)
    w = w.reshape(65, 33, 3).transpose(axes)
    optimizer = optimizers.AdamW({"w": w}, lr=1e-3)
    optimizer.step({"w": np.ones_like(w)})
    made = [arrays["w"] for arrays in optimizer._kept.arrays]
    optimizer.load_state_dict(optimizer.state_dict())
    loaded = [arrays["w"] for arrays in optimizer._kept.arrays]
    for moments in (made, loaded):
        assert [moment.ctypes.data % 64 for moment in moments] == [offset, offset]
        assert [moment.strides for moment in moments] == [w.strides] * 2
    for one, other in zip(made, loaded, strict=True):
        assert one is not other
        np.testing.assert_array_equal(one, other)
