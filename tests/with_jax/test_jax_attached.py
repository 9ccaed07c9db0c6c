"""Penalties on trees of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastreg.jax
from fastreg.jax import attach
from fastreg.regularizers import L1, L1L2, OrthogonalRegularizer

RULES = {"*kernel": L1L2(0.3, 0.7), "head/*": None, "*bias": "l2"}


def make_params():
    rng = np.random.default_rng(0)
    return {
        "layers": [
            {"kernel": jnp.asarray(rng.standard_normal((7, 5)), jnp.float32), "bias": jnp.ones(5)},
            {"kernel": jnp.asarray(rng.standard_normal((5, 3)), jnp.bfloat16), "bias": jnp.ones(3)},
        ],
        "head": (jnp.ones(4), None),
        "steps": jnp.arange(3),
    }


def expected_value(params):
    kernels = sum(float(L1L2(0.3, 0.7)(layer["kernel"])) for layer in params["layers"])
    return kernels + 0.01 * 8


def test_names_values_and_gradients(engine):
    params = make_params()
    penalties = attach(params, RULES)
    assert repr(penalties) == (
        "<TreePenalties on 4 of 6 leaves: 'layers/0/bias', 'layers/0/kernel', 'layers/1/bias', "
        "'layers/1/kernel'>"
    )
    value = jax.jit(penalties.value)(params)
    assert value.dtype == jnp.float32
    assert float(value) == pytest.approx(expected_value(params), rel=1e-6)
    assert float(penalties.value(params)) == pytest.approx(float(value), rel=1e-6)
    for gradients in (
        jax.jit(penalties.gradient)(params),
        penalties.gradient(params),
        jax.jit(penalties.value_and_grad)(params)[1],
    ):
        assert jax.tree_util.tree_structure(gradients) == jax.tree_util.tree_structure(params)
        jax.tree_util.tree_map(
            lambda g, p: (g.shape, g.dtype) == (p.shape, p.dtype) or 1 / 0, gradients, params
        )
        for layer, slopes in zip(params["layers"], gradients["layers"], strict=True):
            expected = L1L2(0.3, 0.7).gradient(np.asarray(layer["kernel"]))
            assert np.asarray(slopes["kernel"]).tobytes() == expected.tobytes()
        assert not gradients["head"][0].any()
        assert not gradients["steps"].any()


@pytest.mark.parametrize(("scale", "grad_scale"), [(0.5, 4.0), (-0.7, 3.3), (1 / 3, 0.1)])
def test_scaled_gradients_have_the_bits_of_the_core(engine, scale, grad_scale):
    w = jnp.asarray(np.random.default_rng(0).standard_normal((40, 30)), jnp.float32)
    rule = L1L2(0.3, 0.7)
    penalties = attach({"w": w}, rule)
    expected = rule.gradient(np.asarray(w), scale=scale, grad_scale=grad_scale)
    for wrapped in (jax.jit, lambda call: call):
        one, (_, other) = (
            wrapped(lambda w, call=call: call({"w": w}, scale=scale, grad_scale=grad_scale))(w)
            for call in (penalties.gradient, penalties.value_and_grad)
        )
        for gradient in (one["w"], other["w"]):
            assert np.asarray(gradient).tobytes() == expected.tobytes()


def test_coefficients_that_float32_has_not_are_refused():
    penalties = attach({"w": jnp.ones(2)}, L1L2(0.3, 0.7))
    for call in (penalties.gradient, penalties.value_and_grad):
        with pytest.raises(
            ValueError, match=r"l1 \* scale \* grad_scale must be finite in float32"
        ):
            call({"w": jnp.ones(2)}, scale=1e300)


def test_the_value_has_the_bits_of_the_core_by_one_call(core):
    params = make_params()
    penalties = attach(params, RULES)
    program = jax.jit(jax.value_and_grad(penalties.value, allow_int=True))
    assert program.lower(params).compile().as_text().count(" custom-call(") == 1
    assert program(params)[0] == penalties.value(params)


def test_schedules_by_the_penalties_as_an_argument(engine):
    params, traces = make_params(), []
    penalties = attach(params, RULES)

    @jax.jit
    def value(penalties, params):
        traces.append(None)
        return penalties.value(params)

    for l1 in (0.3, 0.1, 0.0):
        penalties.rules["*kernel"].l1 = l1
        assert float(value(penalties, params)) == pytest.approx(float(penalties.value(params)))
    assert len(traces) == 1
    penalties.rules["*kernel"].l1 = 0.3


class Named(L1):
    """A subclass, which is no pytree."""


def test_strengths_of_a_subclass_are_not_kept_by_the_compiled_program(engine):
    params, rule = {"kernel": jnp.ones(3)}, Named(0.5)
    penalties = attach(params, {"kernel": rule})
    value = jax.jit(lambda penalties, params: penalties.value(params))
    assert float(value(penalties, params)) == 1.5
    rule.l1 = 2.0
    assert float(value(penalties, params)) == 6.0
    assert value._cache_size() == 2
    assert float(value(penalties, params)) == 6.0
    assert value._cache_size() == 2


def test_another_structure_is_matched_anew():
    params = make_params()
    penalties = attach(params, {"*kernel": "l2"})
    part = {"kernel": jnp.ones(3)}
    assert float(penalties.value(part)) == pytest.approx(0.03)
    with pytest.raises(ValueError, match=r"rules\['\*kernel'\] matches no tensor"):
        penalties.value({"bias": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"rules\['\*kernle'\] matches no tensor"):
        attach(params, {"*kernle": "l2"})


def test_a_report_says_what_each_leaf_has(engine):
    params = make_params()
    params["layers"][0]["bias"] = jnp.asarray([0.0, -0.0, 1e-40, 1.0])
    penalties = attach(params, {"*0/kernel": lambda w: jnp.abs(w).max()} | RULES)
    report = penalties.report(params, scale=0.5)
    names = [*report]
    assert names == [
        *("head/0", "layers/0/bias", "layers/0/kernel", "layers/1/bias", "layers/1/kernel"),
        "steps",
    ]
    assert report.total == pytest.approx(0.5 * float(penalties.value(params)), rel=1e-6)
    kernel = params["layers"][1]["kernel"]
    assert report["layers/1/kernel"].penalty == pytest.approx(0.5 * float(L1L2(0.3, 0.7)(kernel)))
    assert report["layers/1/kernel"].rule == L1L2(0.3, 0.7)
    assert report["layers/0/bias"].zeros == 0.5
    assert report["head/0"].rule is None
    assert report["steps"].zeros == pytest.approx(1 / 3)
    assert str(report).splitlines()[-1].startswith("total")
    with pytest.raises(TypeError, match=r"params\['head/0'\] is a JAX tracer"):
        jax.jit(penalties.report)(params)


class Variable:
    """A container of one array that is a node of the tree, as parameters of flax nnx are."""

    def __init__(self, *values):
        self.values = values

    def __jax_array__(self):
        return self.values[0]


jax.tree_util.register_pytree_with_keys(
    Variable,
    lambda variable: (
        [(jax.tree_util.GetAttrKey(f"value{i}"), x) for i, x in enumerate(variable.values)],
        None,
    ),
    lambda _, values: Variable(*values),
)


def test_containers_of_one_array_end_a_name(engine):
    params = {"a": {"kernel": Variable(jnp.ones(3)), "two": Variable(jnp.ones(1), jnp.ones(1))}}
    penalties = attach(params, {"*kernel": L1(0.5), "a/two/value1": L1(2.0)})
    assert repr(penalties) == "<TreePenalties on 2 of 3 leaves: 'a/kernel', 'a/two/value1'>"
    assert float(jax.jit(penalties.value)(params)) == 3.5
    gradients = penalties.gradient(params)
    assert gradients["a"]["kernel"].values[0].tolist() == [0.5] * 3


def test_states_of_flax(engine):
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    for tree in (nnx.state(model), nnx.state(model, nnx.Param)):
        penalties = attach(tree, {"kernel": L1(0.5), "bias": None})
        value, gradients = penalties.value_and_grad(tree)
        kernel = np.asarray(model.kernel[...])
        assert float(value) == pytest.approx(float(L1(0.5)(jnp.asarray(kernel))), rel=1e-6)
        assert np.asarray(gradients["kernel"][...]).tolist() == (0.5 * np.sign(kernel)).tolist()


def test_leaves_that_are_no_arrays_are_named(engine):
    params = {"weight": jnp.ones(3), "activation": jnp.tanh}
    penalties = attach(params, {"weight": L1(0.5)})
    assert float(penalties.value(params)) == 1.5
    for call in (penalties.gradient, penalties.value_and_grad):
        with pytest.raises(
            TypeError, match=r"params\['activation'\] is a .* has no gradient; pass"
        ):
            call(params)
    arrays = params | {"activation": None}
    assert penalties.gradient(arrays)["activation"] is None
    everything = attach(params, L1(0.5))
    for call in (everything.value, everything.gradient, everything.value_and_grad):
        with pytest.raises(TypeError, match=r"params\['activation'\] must be an array, not a "):
            call(params)
    assert penalties.report(params)["activation"].zeros == 0.0


def test_modules_of_equinox(engine):
    equinox = pytest.importorskip("equinox")
    model = equinox.nn.MLP(3, 2, 4, 1, key=jax.random.PRNGKey(0))
    penalties = attach(model, {"*weight": L1(0.5)})
    with pytest.raises(TypeError, match=r"params\['activation'\] is .* equinox.filter"):
        penalties.gradient(model)
    arrays = equinox.filter(model, equinox.is_array)
    gradients = penalties.gradient(arrays)
    by_jax = equinox.filter_grad(penalties.value)(model)
    assert jax.tree_util.tree_structure(gradients) == jax.tree_util.tree_structure(arrays)
    for layer, other in zip(gradients.layers, by_jax.layers, strict=True):
        assert layer.weight.tolist() == other.weight.tolist()


def test_what_does_not_fit_is_named(engine):
    params = {"a": jnp.ones(3), "b": jnp.ones(2, "complex64")}
    with pytest.raises(TypeError, match=r"params\['b'\] has dtype complex64"):
        jax.jit(attach(params, "l2").value)(params)
    penalties = attach(params, {"a": "l2"})
    with pytest.raises(ValueError, match="grad_scale must be a finite number, not float nan"):
        penalties.value_and_grad(params, grad_scale=float("nan"))
    with pytest.raises(TypeError, match="grad_scale must be a finite number, not str '2'"):
        penalties.value_and_grad(params, grad_scale="2")
    with pytest.raises(TypeError, match="scale must be a finite number, not str '2'"):
        penalties.gradient(params, scale="2")
    with pytest.raises(ValueError, match="scale must be a finite number, not float nan"):
        penalties.gradient(params, scale=float("nan"))


def test_names_with_brackets(engine):
    params = {"['a']['kernel']": jnp.ones(2), "ak": jnp.ones(4), "layers": [jnp.ones(8)]}
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    by_path = dict(zip(names, jax.tree_util.tree_leaves(params), strict=True))
    for name in names:
        assert float(attach(by_path, {name: L1(1.0)}).value(by_path)) == by_path[name].size
    penalties = attach(params, {"['a']['kernel']": L1(1.0)})
    assert float(penalties.value(params)) == float(jax.jit(penalties.value)(params)) == 2.0


def test_rules_that_are_functions(engine):
    params = make_params()
    rules = {"*0/kernel": OrthogonalRegularizer(0.5), "*bias": lambda w: jnp.abs(w).max()}
    penalties = attach(params, rules)
    kernel = params["layers"][0]["kernel"]
    expected = float(rules["*0/kernel"](np.asarray(kernel))) + 2.0
    for value in (penalties.value, jax.jit(penalties.value)):
        assert float(value(params)) == pytest.approx(expected, rel=1e-5)
    gradients = penalties.gradient(params)
    expected = rules["*0/kernel"].gradient(np.asarray(kernel))
    np.testing.assert_allclose(gradients["layers"][0]["kernel"], expected, atol=1e-6)
    assert gradients["layers"][1]["bias"].sum() == pytest.approx(1.0)
    passed = jax.jit(lambda penalties, params: penalties.value(params))(penalties, params)
    assert passed == jax.jit(penalties.value)(params)


def test_one_regularizer_for_all_and_none():
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    assert float(attach(params, L1(0.5)).value(params)) == 2.5
    assert jax.jit(attach(params, None).value)(params) == 0.0
    assert attach({}, "l2").value({}) == 0.0
    assert float(attach(jnp.ones(3), L1(0.5)).value(jnp.ones(3))) == 1.5


def test_leaves_of_one_name_keep_their_own_gradients(engine):
    params = {"a/b": jnp.ones(3), "a": {"b": jnp.full(4, 2.0)}}
    penalties = attach(params, L1L2(0.0, 0.5))
    assert float(jax.jit(penalties.value)(params)) == 9.5
    gradients = penalties.gradient(params)
    assert gradients["a/b"].tolist() == [1.0] * 3
    assert gradients["a"]["b"].tolist() == [2.0] * 4


def test_integers_have_values_and_no_gradient(engine):
    params = {"a": jnp.arange(4), "b": jnp.ones(2)}
    penalties = attach(params, L1(0.5))
    assert float(jax.jit(penalties.value)(params)) == 4.0
    with pytest.raises(TypeError, match=r"int32, for which there is no gradient"):
        penalties.gradient(params)
    with pytest.raises(TypeError, match=r"params\['a'\] has dtype int32"):
        penalties.value_and_grad(params)


def test_scales_and_strengths_that_are_traced(engine):
    params = {"a": jnp.ones(4)}
    penalties = attach(params, L1(0.5))
    value = jax.jit(lambda params, scale: penalties.value(params, scale=scale))
    assert [float(value(params, scale)) for scale in (1.0, 0.5)] == [2.0, 1.0]
    gradient = jax.jit(lambda params, scale: penalties.gradient(params, scale=scale))
    assert gradient(params, 0.5)["a"].tolist() == [0.25] * 4


def test_mixed_precision(double, engine):
    params = {"a": jnp.full(3, 0.1, "float64"), "b": jnp.full(3, 0.1, "float32")}
    penalties = attach(params, L1(0.5))
    value = jax.jit(penalties.value)(params)
    assert value.dtype == jnp.float64 == penalties.value(params).dtype
    assert float(value) == pytest.approx(0.15 + 0.15000000223517418, rel=1e-15)


def test_without_jax_the_import_says_what_to_install(monkeypatch):
    import importlib
    import sys

    from fastreg._autodiff.jax import require

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "jax", None)
        with pytest.raises(ImportError, match=r"install fastreg-kernels\[jax\]"):
            importlib.reload(require)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "__version_info__", (0, 4, 38))
        with pytest.raises(ImportError, match=r"JAX 0\.5 or later"):
            importlib.reload(require)
    importlib.reload(require)
    assert fastreg.jax.attach is attach
