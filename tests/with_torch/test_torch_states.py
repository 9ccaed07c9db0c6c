"""A training loop in any order of its calls, over a module, against the oracle in contract.py.

Parameters are replaced, tied, frozen, loaded, copied and pickled between calls of penalties,
proximal steps and optimizers.  ``FASTREG_STATES=2000`` tries as many runs, of other choices.
"""

import copy
import pickle

import canonical
import contract
import numpy as np
import state_machines
import torch
from canonical_step import Options
from contract import Optimizer, Refused
from hypothesis import stateful
from hypothesis import strategies as st
from torch import nn

import fastreg.torch
from fastreg.regularizers import L1, L1L2, L2

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}
NAMES = ("a.kernel", "a.bias", "b.kernel", "b.bias")
SHAPES = ((), (5,), (3, 4), (33,), (2, 3, 4))

names = st.sampled_from(NAMES)
seeds = st.integers(0, 40)
strengths = st.sampled_from((0.0, 0.02, 0.3, 1.5))
regularizers = st.one_of(
    st.builds(L1, strengths), st.builds(L2, strengths), st.builds(L1L2, strengths, strengths)
)
modes = st.sampled_from(("proximal", "gradient", "decoupled"))


def rules_of(rule):
    globs = st.lists(
        st.sampled_from(("*kernel", "a.*", "b.bias", "*")), min_size=1, max_size=2, unique=True
    )
    return globs.flatmap(
        lambda keys: st.tuples(*(st.one_of(st.none(), rule, rule) for _ in keys)).map(
            lambda rules: dict(zip(keys, rules, strict=True))
        )
    )


def tensor_of(shape, dtype, seed, transposed=False):
    numbers = canonical.numbers(int(np.prod(shape, dtype=int)), dtype, seed)
    made = torch.tensor(numbers, dtype=torch.float64).to(DTYPES[dtype]).reshape(shape)
    return made.T.contiguous().T if transposed and made.ndim == 2 else made


def array_of(tensor):
    """Return the memory of a tensor as a NumPy array."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(canonical.NUMPY["bf16"])
    return tensor.numpy()


class Loop(stateful.RuleBasedStateMachine):
    """The loop; what is checked is checked by the rule that makes a call."""

    def __init__(self):
        super().__init__()
        self.module = nn.Module()
        self.penalties = self.rules = None
        self.saved = []

    @stateful.initialize(seed=seeds, shape=st.sampled_from(SHAPES))
    def begin(self, seed, shape):
        for place, name in enumerate(NAMES):
            part, _, own = name.partition(".")
            if not hasattr(self.module, part):
                self.module.add_module(part, nn.Module())
            made = tensor_of(shape, "f32", seed + place)
            getattr(self.module, part).register_parameter(own, nn.Parameter(made))

    def parameter(self, name):
        part, _, own = name.partition(".")
        return getattr(getattr(self.module, part), own)

    def put(self, name, parameter):
        part, _, own = name.partition(".")
        setattr(getattr(self.module, part), own, parameter)

    def parameters(self):
        return dict(self.module.named_parameters())

    def arrays(self):
        return {name: array_of(one) for name, one in self.parameters().items()}

    def penalised(self):
        """Return the rules of the arrays that count, by name; a frozen one has no penalty."""
        counted = contract.penalised(self.arrays(), self.rules)
        return {name: rule for name, rule in counted.items() if self.parameter(name).requires_grad}

    # ---- parameters

    @stateful.rule(
        name=names,
        shape=st.sampled_from(SHAPES),
        dtype=st.sampled_from([*DTYPES]),
        seed=seeds,
        transposed=st.booleans(),
    )
    def replace(self, name, shape, dtype, seed, transposed):
        self.put(name, nn.Parameter(tensor_of(shape, dtype, seed, transposed)))

    @stateful.rule(name=names, other=names)
    def tie(self, name, other):
        self.put(name, self.parameter(other))

    @stateful.rule(name=names, frozen=st.booleans())
    def freeze(self, name, frozen):
        self.parameter(name).requires_grad_(not frozen)

    @stateful.rule(name=names, seed=seeds, missing=st.booleans())
    def have_gradient(self, name, seed, missing):
        one = self.parameter(name)
        short = contract.short(array_of(one))
        one.grad = None if missing else tensor_of(tuple(one.shape), short, seed)

    @stateful.rule()
    def save(self):
        self.saved.append({n: one.clone() for n, one in self.module.state_dict().items()})

    @stateful.rule(which=st.integers(0, 3))
    def load(self, which):
        if self.saved:
            state = self.saved[which % len(self.saved)]
            if all(state[n].shape == one.shape for n, one in self.parameters().items()):
                self.module.load_state_dict(state)

    @stateful.rule(deep=st.booleans())
    def copy_all(self, deep):
        everything = (self.module, self.penalties, self.rules)
        before = {name: one.tobytes() for name, one in self.arrays().items()}
        firsts = contract.first_names(self.arrays())
        copied = copy.deepcopy(everything) if deep else pickle.loads(pickle.dumps(everything))
        self.module, self.penalties, self.rules = copied
        assert {name: one.tobytes() for name, one in self.arrays().items()} == before
        assert contract.first_names(self.arrays()) == firsts

    # ---- calls

    def attempt(self, call, oracle):
        """Make a call; return what it and the oracle say, or None where both refuse."""
        held = [*self.parameters().values()]
        held += [one.grad for one in held if one.grad is not None]
        before = [array_of(one).tobytes() for one in held]
        try:
            expected = oracle()
        except Refused as refused:
            try:
                call()
            except refused.kinds:
                assert before == [array_of(one).tobytes() for one in held]
                return None
            raise AssertionError(f"not refused, but should be: {refused.kinds}") from None
        return call(), expected

    @stateful.rule(rules=rules_of(regularizers))
    def attach(self, rules):
        def oracle():
            self.rules, before = rules, self.rules
            try:
                if not self.penalised() and any(rule is not None for rule in rules.values()):
                    raise Refused(ValueError, UserWarning)
            finally:
                self.rules = before

        arrays = self.arrays()
        try:
            contract.winners(arrays, rules)
        except Refused:
            return
        frozen = [n for n, one in self.parameters().items() if not one.requires_grad]
        if not frozen and any(rule is not None for rule in rules.values()):
            made = self.attempt(lambda: fastreg.torch.attach(self.module, rules), oracle)
            if made:
                self.penalties, self.rules = made[0], rules

    def is_plain(self):
        """Return whether the rules fit, and something is left that they act on."""
        if self.penalties is None:
            return False
        try:
            return bool(self.penalised())
        except Refused:
            return False

    @stateful.rule()
    def value(self):
        if self.is_plain():
            arrays = self.arrays()
            values = [contract.penalty(arrays[n], one) for n, one in self.penalised().items()]
            with torch.no_grad():
                found = self.penalties.value()
            assert canonical.value_bits(float(found)) == canonical.value_bits(
                contract.total(values)
            )

    @stateful.rule(scale=st.sampled_from((1.0, 0.5)), grad_scale=st.sampled_from((1.0, 8.0)))
    def accumulate(self, scale, grad_scale):
        if not self.is_plain():
            return
        arrays, rules = self.arrays(), self.penalised()

        def oracle():
            grads = {name: self.parameter(name).grad for name in rules}
            old = {n: None if one is None else array_of(one) for n, one in grads.items()}
            return {
                name: contract.gradient(arrays[name], rule, scale, grad_scale, old[name])
                for name, rule in rules.items()
            }

        made = self.attempt(
            lambda: self.penalties.accumulate(scale=scale, grad_scale=grad_scale), oracle
        )
        if made:
            value, expected = made
            wanted = contract.total(contract.penalty(arrays[n], r, scale) for n, r in rules.items())
            assert canonical.value_bits(float(value)) == canonical.value_bits(wanted)
            for name, one in expected.items():
                flat = contract.in_order_of(arrays[name], array_of(self.parameter(name).grad))
                same(flat, one, contract.short(arrays[name]))

    @stateful.rule(step=st.sampled_from((0.0, 0.1, 2.0)))
    def prox(self, step):
        if not self.is_plain():
            return
        arrays, rules = self.arrays(), self.penalised()
        expected = contract.prox({n: arrays[n] for n in rules}, dict(rules), step)
        record = self.penalties.prox(step)
        for name, one in expected.elements.items():
            same(contract.elements(self.arrays()[name]), one, contract.short(arrays[name]))
        assert canonical.value_bits(float(record.penalty)) == canonical.value_bits(expected.penalty)
        assert (int(record.zeros), record.size) == (expected.zeros, expected.size)

    @stateful.rule(
        rules=rules_of(st.tuples(regularizers, modes)),
        max_norm=st.sampled_from((None, 0.5)),
        momentum=st.sampled_from((0.0, 0.9)),
        steps=st.integers(1, 3),
    )
    def train(self, rules, max_norm, momentum, steps):
        """Take steps of a new optimizer: of what has a gradient."""
        arrays = self.arrays()
        try:
            contract.winners(arrays, rules)
        except Refused:
            return
        optimizer = fastreg.torch.SGD(
            self.module, lr=0.1, momentum=momentum, rules=rules, max_norm=max_norm
        )
        oracle = Optimizer(Options("sgd", momentum=momentum), rules, 0.1, max_norm=max_norm)
        for _ in range(steps):
            given = {n: one.grad for n, one in self.parameters().items()}
            grads = {n: None if one is None else array_of(one) for n, one in given.items()}
            for name, first in contract.first_names(arrays).items():
                grads[name] = grads[first]
            expected = oracle.step(arrays, grads)
            optimizer.step()
            for name, one in expected.elements.items():
                same(contract.elements(self.arrays()[name]), one, contract.short(arrays[name]))
            record = optimizer.last
            assert canonical.value_bits(record.penalty) == canonical.value_bits(expected.penalty)
            assert contract.same_number(record.norm, expected.norm)
            assert (record.zeros, record.size) == (expected.zeros, expected.size)


def same(found, wanted, dtype):
    np.testing.assert_array_equal(
        canonical.bits(canonical.array(found, dtype)),
        canonical.bits(canonical.array(wanted, dtype)),
    )


Loop.TestCase.settings = state_machines.settings(40, 20)
TestLoop = Loop.TestCase
