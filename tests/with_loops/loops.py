"""What the loops train, what they record, and what their weights and gradients have to equal.

Contract
--------
- A loop is a function ``run(case, way, replay=None)`` that trains ``Net`` for ``STEPS`` steps of
  ``MICRO`` micro-batches each, and gives what it recorded.
- ``way`` says where the penalty is: "plain" is in the loss, written with torch's own operators;
  "fastreg" is as docs/training_loops.md says; one of ``PERMUTED`` is the same
  loss, with the rows of each batch in another order and the terms written otherwise.  Two runs of
  "plain" have the same bits; how far these go from it is what rounding does.
- With ``replay`` each step starts from the weights that the other run had.
"""

from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch")

import fastreg.torch  # noqa: E402
from fastreg.regularizers import L1L2  # noqa: E402

L1_STRENGTH, L2_STRENGTH = 1e-3, 1e-2
STEPS, MICRO, ROWS = 20, 2, 8
MAX_NORM, MAX_VALUE = 0.05, 0.01


@dataclass(frozen=True)
class Case:
    clip: str
    optimizer: str = "sgd"
    autocast: bool = False

    @property
    def max_norm(self):
        return MAX_NORM if self.clip == "norm" else None


CLIPS = "none", "norm", "value"


class Net(torch.nn.Module):
    """With a layer that no loss uses, whose only gradient is that of its penalty."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)
        )
        self.unused = torch.nn.Linear(3, 3)

    def forward(self, x):
        return self.layers(x)


def rows(way):
    """All rows of the training set, those of a batch in the order of `way`."""
    generator = torch.Generator().manual_seed(1)
    count = STEPS * MICRO * ROWS
    x, y = (torch.randn(count, width, generator=generator) for width in (8, 4))
    if way in PERMUTED:
        generator.manual_seed(2 + PERMUTED.index(way))
        order = torch.cat(
            [start + torch.randperm(ROWS, generator=generator) for start in range(0, count, ROWS)]
        )
        x, y = x[order], y[order]
    return x, y


def batches(way):
    return list(zip(*(part.split(ROWS) for part in rows(way)), strict=True))


def kernels(module):
    return [p for name, p in module.named_parameters() if name.endswith("weight")]


PLAIN = {
    "plain": lambda w: L2_STRENGTH * w.square().sum() + L1_STRENGTH * w.abs().sum(),
    "permuted0": lambda w: L1_STRENGTH * w.abs().sum() + L2_STRENGTH * (w * w).sum(),
    "permuted1": lambda w: (L1_STRENGTH * w.abs() + L2_STRENGTH * w * w).sum(),
    "permuted2": lambda w: (w.abs() * (L1_STRENGTH + L2_STRENGTH * w.abs())).sum(),
}
PERMUTED = [way for way in PLAIN if way != "plain"]


def plain_penalty(module, way="plain"):
    return sum(PLAIN[way](w) for w in kernels(module))


def attached(module):
    return fastreg.torch.attach(module, fastreg.torch.kernels(L1L2(L1_STRENGTH, L2_STRENGTH)))


def term_of(module, way):
    """The function that gives what is added to a loss."""
    return attached(module).value if way == "fastreg" else lambda: plain_penalty(module, way)


def optimizer_of(case, module):
    if case.optimizer == "sgd":
        return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    return torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.0)


def clip(case, module):
    """Clip as a loop of one's own does."""
    if case.clip == "norm":
        torch.nn.utils.clip_grad_norm_(module.parameters(), MAX_NORM)
    elif case.clip == "value":
        torch.nn.utils.clip_grad_value_(module.parameters(), MAX_VALUE)


class Record:
    """Gradients that reached the optimizer, and weights, after each of its steps."""

    def __init__(self, module, optimizer, replay=None):
        self.gradients, self.weights = [], []
        self._parameters = list(module.parameters())
        self._replay = replay
        optimizer.register_step_post_hook(self._after_step)

    def _after_step(self, *_):
        given = [p for p in self._parameters if p.grad is not None]
        self.gradients.append(torch.cat([p.grad.flatten() for p in given]))
        with torch.no_grad():
            self.weights.append([p.clone() for p in self._parameters])
            if self._replay is not None:
                wanted = self._replay.weights[len(self.weights) - 1]
                for p, w in zip(self._parameters, wanted, strict=True):
                    p.copy_(w)

    def last(self):
        return torch.cat([w.flatten() for w in self.weights[-1]])


def distance(one, other):
    return (one - other).abs().max().item()


def check_weights(run, case):
    """(a): weights after all steps are those of the plain loss."""
    wanted, found = run(case, "plain"), run(case, "fastreg")
    assert len(found.weights) == len(wanted.weights) == STEPS
    at_start = torch.cat([p.detach().flatten() for p in Net().parameters()])
    if at_start.shape == wanted.last().shape:
        assert distance(wanted.last(), at_start) > 1e-2
    assert distance(found.last(), wanted.last()) <= 1e-6 * wanted.last().abs().max()


def check_gradients(run, case):
    """(b): from the same weights, the optimizer gets the gradients of the plain loss."""
    wanted = run(case, "plain")
    found = run(case, "fastreg", replay=wanted)
    assert len(found.gradients) == len(wanted.gradients) == STEPS
    for one, other in zip(found.gradients, wanted.gradients, strict=True):
        assert distance(one, other) <= 1e-6 * other.abs().max()


def check_drift(run, case):
    """(c): weights are as far from those of the plain loss as rounding alone takes them."""
    wanted, found = run(case, "plain").last(), run(case, "fastreg").last()
    rounding = max(distance(run(case, way).last(), wanted) for way in PERMUTED)
    assert rounding > 0.0
    assert distance(found, wanted) <= 3.0 * rounding


def tests_of(run):
    """The tests that each loop has to pass."""

    @pytest.mark.parametrize("clip", CLIPS)
    def test_weights_after_20_steps(clip):
        check_weights(run, Case(clip))

    @pytest.mark.parametrize("clip", CLIPS)
    def test_gradients_at_each_step(clip):
        check_gradients(run, Case(clip, "adamw", autocast=True))

    def test_drift_is_rounding():
        check_drift(run, Case("norm", "adamw", autocast=True))

    return test_weights_after_20_steps, test_gradients_at_each_step, test_drift_is_rounding
