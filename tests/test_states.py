"""A training loop in any order of its calls, over NumPy arrays, against the oracle in contract.py.

Arrays are replaced, tied, frozen, renamed and laid out anew between calls of penalties, proximal
steps, clips and optimizers, which are saved, loaded, copied and pickled in between.  After each
call all bits are those of the oracle; a call that has to be refused changes nothing.
``FASTREG_STATES=2000`` tries as many runs, of other random choices each time.
"""

import copy
import importlib.util
import io
import pickle

import canonical
import contract
import numpy as np
import state_machines
from canonical_step import Options
from contract import Optimizer, Refused
from hypothesis import stateful
from hypothesis import strategies as st

import fastreg
from fastreg import optimizers
from fastreg._engine import backend as backend_module
from fastreg.regularizers import L1, L1L2, L2

BACKENDS = ["numpy"] if importlib.util.find_spec("fastreg._core") is None else ["native", "numpy"]

NAMES = ("a/kernel", "a/bias", "b/kernel", "b/bias", "c[0]")
GLOBS = ("*kernel", "a/*", "*", "b/bias", "c[0]", "*s", "?/bias", "nothing")
SHAPES = ((), (0, 3), (1,), (5,), (3, 4), (4, 1, 3), (2, 3, 4), (33,), (7, 10))
LAYOUTS = ("C", "F", "swapped", "gaps", "reversed", "repeated")
STRENGTHS = (0.0, 0.02, 0.3, 1.5)
SCALES = (1.0, 0.5, 0.0, -0.5, 3.0)
KINDS = {"momentum_buffer": "m", "exp_avg": "m", "exp_avg_sq": "v", "max_exp_avg_sq": "h"}

floats = st.sampled_from(canonical.DTYPES)
dtypes = st.sampled_from((*canonical.DTYPES, "f32", "f32", "i32", "bool"))
seeds = st.integers(0, 40)
names = st.sampled_from(NAMES)
layouts = st.sampled_from((*LAYOUTS, "C", "C"))
strengths = st.sampled_from(STRENGTHS)
regularizers = st.one_of(
    st.builds(L1, strengths), st.builds(L2, strengths), st.builds(L1L2, strengths, strengths)
)
modes = st.sampled_from(("proximal", "gradient", "decoupled"))


def rules_of(rule):
    globs = st.lists(st.sampled_from(GLOBS), min_size=1, max_size=3, unique=True)
    return globs.flatmap(
        lambda keys: st.tuples(*(st.one_of(st.none(), rule, rule) for _ in keys)).map(
            lambda rules: dict(zip(keys, rules, strict=True))
        )
    )


def laid_out(array, layout):
    """Return a copy of an array with the layout, writable."""
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "swapped" and array.ndim > 1:
        axes = (*range(1, array.ndim), 0)
        back = np.argsort(axes)
        return np.ascontiguousarray(array.transpose(axes)).transpose(back)
    if layout in ("gaps", "reversed") and array.ndim:
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1] + 1), array.dtype)
        view = wide[..., 1::2] if layout == "gaps" else wide[..., 2 * array.shape[-1] :: -2]
        view = view[..., : array.shape[-1]]
        view[...] = array
        return view
    if layout == "repeated" and array.ndim and array.size:
        row = np.array(array[:1])
        strides = (0, *row.strides[1:])
        return np.lib.stride_tricks.as_strided(row, array.shape, strides, writeable=True)
    return array.copy()


def filled(shape, dtype, seed, special=False):
    count = int(np.prod(shape, dtype=int))
    if dtype in ("i32", "bool"):
        drawn = np.random.default_rng(seed).integers(-9, 9, shape)
        return np.asarray(
            drawn > 0 if dtype == "bool" else drawn, np.dtype(dtype.replace("i32", "int32"))
        )
    numbers = canonical.numbers(count, dtype, seed)
    if special and count:
        numbers[seed % count] = (np.inf, -np.inf, np.nan)[seed % 3]
    return canonical.array(numbers, dtype).reshape(shape)


def at_half_rate(step):
    return 0.1 * 0.5 ** (step / 4)


class Loop(stateful.RuleBasedStateMachine):
    """The loop; what is checked is checked by the rule that makes a call."""

    def __init__(self):
        super().__init__()
        self.before = backend_module.name
        self.params = {}
        self.penalties = self.rules = None
        self.optimizer = self.oracle = self.make = None
        self.saved = []

    @stateful.initialize(
        backend=st.sampled_from(BACKENDS),
        given=st.lists(names, min_size=1, max_size=4, unique=True),
        seed=seeds,
    )
    def begin(self, backend, given, seed):
        backend_module.select(backend)
        for place, name in enumerate(given):
            self.params[name] = filled(
                SHAPES[(seed + 3 * place) % len(SHAPES)], "f32", seed + place
            )

    def teardown(self):
        backend_module.select(self.before)

    # ---- the arrays

    @stateful.rule(
        name=names, shape=st.sampled_from(SHAPES), dtype=dtypes, layout=layouts, seed=seeds
    )
    def replace_or_add(self, name, shape, dtype, layout, seed):
        self.params[name] = laid_out(filled(shape, dtype, seed), layout)

    @stateful.rule(name=names, layout=layouts)
    def lay_out_anew(self, name, layout):
        if name in self.params:
            self.params[name] = laid_out(np.array(self.params[name]), layout)

    @stateful.rule(name=names, seed=seeds, special=st.integers(0, 9))
    def write(self, name, seed, special):
        array = self.params.get(name)
        if array is not None and array.flags.writeable:
            dtype = contract.SHORT.get(array.dtype, "i32")
            array[...] = filled(array.shape, dtype, seed, special == 0)

    @stateful.rule(name=names)
    def remove(self, name):
        if len(self.params) > 1:
            self.params.pop(name, None)

    @stateful.rule(name=names, other=names, how=st.sampled_from(("same", "T", "flat", "part")))
    def tie(self, name, other, how):
        if other not in self.params:
            return
        array = self.params[other]
        if how == "T":
            array = array.T
        elif how == "flat":
            array = array.reshape(-1)  # a view where it can be
        elif how == "part":
            array = array[..., 1:] if array.ndim else array
        self.params[name] = array

    @stateful.rule(name=names)
    def freeze(self, name):
        if name in self.params:
            array = self.params[name]
            for one in self.params.values():
                if one is array or contract.same_elements(one, array):
                    one.flags.writeable = False

    @stateful.rule(name=names)
    def thaw(self, name):
        if name in self.params:
            self.params[name] = np.array(self.params[name])

    # ---- calls

    def attempt(self, call, oracle, arrays=()):
        """Make a call; return what it and the oracle say, or None where both refuse."""
        watched = [*self.params.values(), *arrays]
        before = [array.tobytes() for array in watched]
        state = self.state()
        try:
            expected = oracle()
        except Refused as refused:
            try:
                call()
            except refused.kinds:
                assert before == [array.tobytes() for array in watched]
                if state is not None:
                    self.require_same_state(state)
                return None
            raise AssertionError(f"not refused, but should be: {refused.kinds}") from None
        return call(), expected

    def state(self):
        """Return what the optimizer has learned; None where its rules do not fit the names."""
        if self.optimizer is None:
            return None
        try:
            contract.winners(self.params, self.oracle.rules)
        except Refused:
            return None
        return self.optimizer.state_dict()

    def require_same_state(self, before, optimizer=None):
        after = (optimizer or self.optimizer).state_dict()
        assert after.keys() == before.keys()
        for key, value in before.items():
            np.testing.assert_array_equal(after[key], value)

    def require_elements(self, arrays, expected, before):
        """Hold all arrays against what they must be: those written, and all others untouched."""
        for name, wanted in expected.items():
            assert contract.are_bits(arrays[name], wanted), name
        for name, array in arrays.items():
            written = [arrays[one] for one in expected]
            if name not in expected and not any(contract.overlap(array, one) for one in written):
                assert array.tobytes() == before[name], name

    def bits(self, arrays):
        return {name: array.tobytes() for name, array in arrays.items()}

    @stateful.rule(rules=rules_of(regularizers))
    def attach(self, rules):
        made = self.attempt(
            lambda: fastreg.attach(self.params, rules),
            lambda: contract.winners(self.params, rules),
        )
        if made:
            self.penalties, self.rules = made[0], rules

    has_penalties = stateful.precondition(lambda self: self.penalties is not None)

    @has_penalties
    @stateful.rule(which=st.integers(0, 2), term=st.sampled_from(("l1", "l2")), strength=strengths)
    def set_strength(self, which, term, strength):
        rules = [rule for rule in self.rules.values() if rule is not None]
        if rules and hasattr(rules[which % len(rules)], term):
            setattr(rules[which % len(rules)], term, strength)

    @has_penalties
    @stateful.rule(scale=st.sampled_from(SCALES), elsewhere=st.booleans())
    def value(self, scale, elsewhere):
        tensors = {name: np.array(one) for name, one in self.params.items()} if elsewhere else None
        there = self.params if tensors is None else tensors
        made = self.attempt(
            lambda: self.penalties.value(tensors=tensors, scale=scale),
            lambda: contract.total(contract.values(there, self.rules, scale).values()),
        )
        if made:
            assert canonical.value_bits(made[0]) == canonical.value_bits(made[1])

    @has_penalties
    @stateful.rule(scale=st.sampled_from(SCALES), grad_scale=st.sampled_from(SCALES))
    def gradient(self, scale, grad_scale):
        made = self.attempt(
            lambda: self.penalties.value_and_grad(scale=scale, grad_scale=grad_scale),
            lambda: contract.gradients(self.params, self.rules, scale, grad_scale),
        )
        if made:
            (value, found), expected = made
            wanted = contract.total(contract.values(self.params, self.rules, scale).values())
            assert canonical.value_bits(value) == canonical.value_bits(wanted)
            assert [*found] == [*expected]
            for name, one in expected.items():
                array = self.params[name]
                flat = contract.in_order_of(array, found[name])
                assert found[name].dtype == array.dtype
                np.testing.assert_array_equal(
                    canonical.bits(canonical.array(flat, contract.short(array))),
                    canonical.bits(canonical.array(one, contract.short(array))),
                )

    def gradients(self, data, plain=False):
        """Draw gradients of the arrays, now and then one that is wrong."""
        grads = {}
        for name, array in self.params.items():
            kind = data.draw(st.integers(0, 40), label=f"gradient of {name}")
            dtype = contract.short(array)
            if dtype in ("f16", "bf16") and plain and kind % 3 == 0:
                dtype = "f32"
            layout = LAYOUTS[kind % 5]
            grads[name] = laid_out(filled(array.shape, dtype, kind, kind in (7, 8, 9)), layout)
            if kind in (1, 2, 3):
                grads[name] = None
            elif kind == 4:
                del grads[name]
            elif kind == 5:
                grads["unknown"] = grads[name]
            elif kind == 6:
                grads[name] = filled((*array.shape, 2), dtype, kind)
            elif kind == 10 and not plain:
                grads[name].flags.writeable = False
            elif kind == 11 and not plain:
                grads[name] = array
            elif kind == 12 and not plain and len(grads) > 1:
                grads[name] = next(iter(grads.values()))
            elif kind == 13 and not plain:
                grads[name] = laid_out(grads[name], "repeated")
        return grads

    @has_penalties
    @stateful.rule(
        data=st.data(), scale=st.sampled_from(SCALES), grad_scale=st.sampled_from(SCALES)
    )
    def accumulate(self, data, scale, grad_scale):
        grads = self.gradients(data)
        there = {name: one for name, one in grads.items() if one is not None}
        before = self.bits(there)
        made = self.attempt(
            lambda: self.penalties.accumulate(grads, scale=scale, grad_scale=grad_scale),
            lambda: (
                contract.sums(self.params, self.rules, grads, scale, grad_scale),
                contract.total(contract.values(self.params, self.rules, scale).values()),
            ),
            there.values(),
        )
        if made:
            value, (expected, wanted) = made
            assert canonical.value_bits(value) == canonical.value_bits(wanted)
            for name, one in expected.items():
                dtype = contract.short(self.params[name])
                flat = contract.in_order_of(self.params[name], grads[name])
                np.testing.assert_array_equal(
                    canonical.bits(canonical.array(flat, dtype)),
                    canonical.bits(canonical.array(one, dtype)),
                    name,
                )
            for name in there.keys() - expected.keys():
                if not any(contract.overlap(grads[name], grads[one]) for one in expected):
                    assert grads[name].tobytes() == before[name], name

    @has_penalties
    @stateful.rule(step=st.sampled_from((0.0, 0.1, 2.0)), scale=st.sampled_from((1.0, 0.0, 2.0)))
    def prox(self, step, scale):
        before = self.bits(self.params)
        made = self.attempt(
            lambda: self.penalties.prox(step, scale=scale),
            lambda: contract.prox(self.params, self.rules, step, scale),
        )
        if made:
            record, expected = made
            self.require_elements(self.params, expected.elements, before)
            assert canonical.value_bits(record.penalty) == canonical.value_bits(expected.penalty)
            assert (record.zeros, record.size) == (expected.zeros, expected.size)

    @has_penalties
    @stateful.rule()
    def report(self):
        made = self.attempt(
            lambda: self.penalties.report(), lambda: contract.values(self.params, self.rules)
        )
        if made:
            report, expected = made
            firsts = contract.counting(self.params, self.rules)
            assert [*report] == [*self.params]
            for name, row in report.items():
                counts_under = firsts.get(name, name)
                is_tied = row.rule is not None and counts_under != name
                assert row.tied_to == (counts_under if is_tied else None)
                wanted = expected.get(name, 0.0)
                assert canonical.value_bits(row.penalty) == canonical.value_bits(wanted)

    # ---- norms

    @stateful.rule(
        data=st.data(),
        most=st.sampled_from((0.0, 0.5, 4.0, 1e6)),
        on_nonfinite=st.sampled_from(("raise", "ignore")),
    )
    def clip(self, data, most, on_nonfinite):
        grads = self.gradients(data)
        grads.pop("unknown", None)
        there = {name: one for name, one in grads.items() if one is not None}
        before = self.bits(there)
        measured = contract.norms(there)
        found = fastreg.norms(grads).total
        assert all(map(contract.same_number, found, measured))
        made = self.attempt(
            lambda: fastreg.clip_by_global_norm(grads, most, on_nonfinite=on_nonfinite),
            lambda: contract.clip(there, most, on_nonfinite),
            there.values(),
        )
        if made:
            norm, (wanted, expected) = made
            assert canonical.value_bits(norm) == canonical.value_bits(wanted)
            self.require_elements(there, expected, before)

    # ---- optimizers

    @stateful.rule(
        data=st.data(),
        rules=st.one_of(st.just({}), rules_of(st.tuples(regularizers, modes))),
        lr=st.sampled_from((0.0, 0.01, 0.5, at_half_rate)),
        weight_decay=st.sampled_from((0.0, 0.1)),
        maximize=st.booleans(),
        max_norm=st.sampled_from((None, None, 0.5, 1e3)),
        clip=st.sampled_from(("total", "data")),
        on_nonfinite=st.sampled_from((None, "raise", "skip", "ignore")),
        independent=st.booleans(),
        cautious=st.booleans(),
    )
    def make_optimizer(self, data, rules, lr, weight_decay, maximize, **more):
        shared = dict(weight_decay=weight_decay, maximize=maximize)
        in_use = {rule[1] for rule in rules.values() if rule is not None}
        # Options of a mode that no rule has are refused.
        independent, cautious = (
            more.pop(option) and "decoupled" in in_use for option in ("independent", "cautious")
        )
        initial_lr = 0.25 if independent else None
        given = dict(
            shared,
            **more,
            rules=rules,
            cautious=cautious,
            independent=independent,
            **({"initial_lr": initial_lr} if independent else {}),
        )
        scaled = False
        if data.draw(st.booleans(), label="SGD"):
            kind = optimizers.SGD
            momentum = data.draw(st.sampled_from((0.0, 0.9)))
            own = dict(momentum=momentum)
            if momentum:
                nesterov = data.draw(st.booleans(), label="nesterov")
                dampening = 0.0 if nesterov else data.draw(st.sampled_from((0.0, 0.3)))
                own |= dict(nesterov=nesterov, dampening=dampening)
            options = Options("sgd", cautious=cautious, **shared, **own)
        else:
            kind = optimizers.AdamW
            amsgrad, scaled = data.draw(st.booleans()), data.draw(st.booleans())
            scaled |= "proximal" not in in_use
            own = dict(betas=data.draw(st.sampled_from(((0.9, 0.999), (0.5, 0.75)))))
            own |= dict(eps=data.draw(st.sampled_from((1e-8, 1e-3))), amsgrad=amsgrad)
            options = Options("adamw", cautious=cautious, **shared, **own)
            own |= dict(scaled=scaled)

        def make():
            return kind(self.params, lr, **given, **own)

        made = self.attempt(make, lambda: contract.winners(self.params, rules))
        if made:
            scale = {"proximal": "scaled"} if scaled else {}
            its = {
                glob: None if rule is None else (rule[0], scale.get(rule[1], rule[1]))
                for glob, rule in rules.items()
            }
            self.optimizer, self.make = made[0], make
            self.oracle = Optimizer(options, its, lr, initial_lr=initial_lr, **more)

    has_optimizer = stateful.precondition(lambda self: self.optimizer is not None)

    @has_optimizer
    @stateful.rule(
        lr=st.sampled_from((None, 0.0, 0.2)),
        strength=st.sampled_from((None, 0.0, 0.5, 2.0)),
        max_norm=st.sampled_from((0, 0.1, None)),
    )
    def set_numbers(self, lr, strength, max_norm):
        for one in (self.optimizer, self.oracle):
            if lr is not None:
                one.lr = lr
            if strength is not None:
                one.strength = strength
            if max_norm != 0:
                one.max_norm = max_norm

    @has_optimizer
    @stateful.rule(
        data=st.data(),
        loss_scale=st.sampled_from((1.0, 1.0, 8.0)),
        found_inf=st.sampled_from((None, None, False, True)),
    )
    def step(self, data, loss_scale, found_inf):
        if self.state() and not self.moments_fit():
            return  # needs a new optimizer, say the documents
        grads = self.gradients(data, plain=True)
        firsts = contract.first_names(self.params)
        for name, first in firsts.items():  # tied ones are given under the first name, mostly
            if first != name and name in grads and len(grads) % 5:
                grads[name] = grads.get(first)
        there = [one for one in grads.values() if one is not None]
        before = self.bits(self.params)
        made = self.attempt(
            lambda: self.optimizer.step(grads, loss_scale=loss_scale, found_inf=found_inf),
            lambda: self.oracle.step(self.params, grads, loss_scale, found_inf),
            there,
        )
        if made:
            record, expected = made
            self.require_elements(self.params, expected.elements, before)
            assert canonical.value_bits(record.penalty) == canonical.value_bits(expected.penalty)
            assert contract.same_number(record.norm, expected.norm)
            assert (record.zeros, record.size, record.skipped) == (
                expected.zeros,
                expected.size,
                expected.skipped,
            )
            self.require_state()

    def moments_fit(self):
        """Return whether what is kept has the shapes and dtypes that the arrays ask for."""
        for key, value in self.optimizer.state_dict().items():
            array = self.params.get(key.partition("/")[2])
            if isinstance(value, np.ndarray) and array is not None:
                wanted = np.float64 if array.dtype == np.float64 else np.float32
                if (value.shape, value.dtype) != (array.shape, wanted):
                    return False
        return True

    def require_state(self):
        state = self.optimizer.state_dict()
        assert self.optimizer.steps == self.oracle.steps == state["steps"]
        for name, first in contract.first_names(self.params).items():
            if name != first:
                continue
            kept = self.oracle.state.get(name, contract.Moments())
            assert state[f"step/{name}"] == kept.t
            for kind, attribute in KINDS.items():
                found = state.get(f"{kind}/{name}")
                if found is not None and kept.t:
                    wanted = getattr(kept, attribute)
                    short = contract.SHORT[found.dtype]
                    np.testing.assert_array_equal(
                        canonical.bits(found).reshape(-1),
                        canonical.bits(canonical.array(wanted, short)),
                        f"{kind}/{name}",
                    )

    @has_optimizer
    @stateful.rule(in_file=st.booleans())
    def save(self, in_file):
        state = self.state()
        if state is None:
            return
        if in_file:
            file = io.BytesIO()
            np.savez(file, **state)
            file.seek(0)
            state = np.load(file)
        forms = {name: (one.shape, one.dtype) for name, one in self.params.items()}
        firsts = contract.first_names(self.params)
        oracle = copy.deepcopy(self.oracle)
        # what was kept under the further name of a tie is not in the state
        oracle.state = {
            name: kept for name, kept in oracle.state.items() if name in firsts.values()
        }
        # nor is one of use whose moments are those of an array that was replaced by another form
        self.saved.append((state, oracle, forms if self.moments_fit() else None, firsts))

    @has_optimizer
    @stateful.rule(which=st.integers(0, 3), anew=st.booleans())
    def load(self, which, anew):
        if not self.saved or self.state() is None:
            return
        state, oracle, forms, firsts = self.saved[which % len(self.saved)]
        there = {name: (one.shape, one.dtype) for name, one in self.params.items()}
        fits = (
            forms == there
            and firsts == contract.first_names(self.params)
            and oracle.options == self.oracle.options
        )
        if not fits:  # what is refused changes nothing
            other = copy.deepcopy(self.optimizer)
            before = other.state_dict()  # of a copy: NumPy copies views as arrays of their own
            try:
                other.load_state_dict(state)
            except (TypeError, ValueError):
                self.require_same_state(before, other)
            return
        if anew:
            made = self.attempt(self.make, lambda: contract.winners(self.params, self.oracle.rules))
            if not made:
                return
            self.optimizer = made[0]
            self.optimizer.lr, self.optimizer.strength = self.oracle.lr, self.oracle.strength
            self.optimizer.max_norm = self.oracle.max_norm
        self.optimizer.load_state_dict(state)
        self.oracle.steps, self.oracle.state = oracle.steps, copy.deepcopy(oracle.state)
        self.require_state()

    # ---- copies of everything

    @stateful.rule(deep=st.booleans())
    def copy_all(self, deep):
        everything = (self.params, self.penalties, self.rules, self.optimizer, self.oracle)
        writable = {name: array.flags.writeable for name, array in self.params.items()}
        before = self.bits(self.params)
        copied = copy.deepcopy(everything) if deep else pickle.loads(pickle.dumps(everything))
        self.params, self.penalties, self.rules, self.optimizer, self.oracle = copied
        assert self.bits(self.params) == before
        for name, array in self.params.items():
            array.flags.writeable = writable[name]


Loop.TestCase.settings = state_machines.settings(60, 25)
TestLoop = Loop.TestCase
