"""Steps of SGD and AdamW with an L1 penalty in them, beside torch and what is written with it.

All ways of a row share the parameters and the gradients, each in one stretch of memory; torch and
fastreg.torch share the moments too, because which pages an array has changes the time of a pass
over it by up to a third.  The others make their own, as does torch in bfloat16, where they have
another type.  The floor is a bare loop that adds: it reads and writes what the step does, after
bare reads of what a guard or a clip looks at.  Of a large model a sample of the parameters is
compared, of bfloat16 means of blocks, which do not show where a last bit was rounded otherwise.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

import fastreg
from fastreg._info import native_core
from fastreg.bench.frameworks.base import Setting, Settings, Variant
from fastreg.bench.frameworks.sizes import Sizes
from fastreg.bench.row import Work
from fastreg.bench.shapes import MODELS, Shapes
from fastreg.regularizers import L1

LEARNING_RATE, MOMENTUM = 1e-3, 0.9
#: eps is so large that a first step of AdamW without the clip leaves other parameters.
BETAS, EPS, WEIGHT_DECAY = (0.9, 0.999), 1e-5, 1e-2
#: Of gradients, on average, where they are clipped.
CLIPPED = 1e-4
#: Parameters are this times normal numbers, and gradients half as large.
MAGNITUDE = 0.02
#: Of the parameters that are compared.
SAMPLE = 1 << 20
BLOCK = 1024


@dataclass(frozen=True)
class Task:
    """What a step has to do."""

    what: str
    algorithm: str
    #: Such that a step without it leaves other parameters.
    l1: float
    mode: str = "proximal"
    scaled: bool = False
    guard: bool = False
    clip: str | None = None

    @property
    def moments(self) -> tuple[str, ...]:
        """What torch calls the moments."""
        return ("momentum_buffer",) if self.algorithm == "SGD" else ("exp_avg", "exp_avg_sq")

    def options(self, max_norm: float) -> dict[str, Any]:
        """Return the options of fastreg's optimizers."""
        found: dict[str, Any] = {"lr": LEARNING_RATE, "rules": L1(self.l1), "mode": self.mode}
        if self.algorithm == "SGD":
            found["momentum"] = MOMENTUM
        else:
            found |= {"betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}
            if self.mode == "proximal":
                found["scaled"] = self.scaled
        if self.guard:
            found["on_nonfinite"] = "raise"
        if self.clip is not None:
            found |= {"max_norm": max_norm, "clip": self.clip}
        return found


SGD = Task("SGD with momentum, prox", "SGD", 0.2)
ADAMW = Task("AdamW, prox", "AdamW", 0.2)
SCALED = Task("AdamW, scaled prox", "AdamW", 5e-3, scaled=True)
GUARD = Task("AdamW, prox, guard", "AdamW", 0.2, guard=True)
DATA = Task("AdamW, prox, clip of the data", "AdamW", 0.2, clip="data")
TOTAL = Task("AdamW, L1 in the gradient, clip of both", "AdamW", 5e-3, "gradient", clip="total")


def settings(sizes: Sizes) -> Settings:
    """Yield the settings: one tensor, a model's, many small ones, and bfloat16."""
    torch: Any = importlib.import_module("torch")
    torch.manual_seed(20260101)
    one: Shapes = {"w": (sizes.step_elements,)}
    small: Shapes = {f"w{i}": (sizes.elements,) for i in range(sizes.tensors)}
    yield from _settings(torch, one, "one tensor", [SGD, ADAMW, SCALED, GUARD, DATA, TOTAL])
    yield from _settings(torch, small, "small tensors", [SGD, ADAMW, TOTAL])
    yield from _settings(torch, one, "one tensor", [ADAMW], torch.bfloat16)
    model = {
        name: tuple(max(1, side // sizes.step_divisor) for side in shape)
        for name, shape in MODELS["gpt2"].items()
    }
    yield from _settings(torch, model, "GPT-2's shapes", [SGD, SCALED, TOTAL])


def _settings(
    torch: Any, shapes: Shapes, words: str, tasks: Sequence[Task], dtype: Any = None
) -> Iterator[Setting]:
    model = Model(torch, shapes, dtype or torch.float32)
    size = f"{words}: {model.flat.numel():,} {str(model.flat.dtype).removeprefix('torch.')}"
    for task in tasks:
        what = f"{task.what}; {size} in {len(shapes)}"
        work = Work("optimizers", what, usual="usual", bare="torch, fused alone", addition="floor")
        yield Setting(work, _ways(torch, model, task))


class Model:
    """Parameters and gradients that all ways share."""

    def __init__(self, torch: Any, shapes: Shapes, dtype: Any) -> None:
        self.shapes = shapes
        self._zero: Any = torch.zeros(())
        count = sum(int(np.prod(shape)) for shape in shapes.values())
        self.max_norm: Any = CLIPPED * count**0.5
        self.at_start: Any = torch.randn(count).mul_(MAGNITUDE).to(dtype)
        self.gradients_at_start: Any = torch.randn(count).mul_(MAGNITUDE / 2).to(dtype)
        self.flat: Any
        self.gradients: Any
        self.flat, self.gradients = self.at_start.clone(), self.gradients_at_start.clone()
        self.moments: list[Any] = [torch.zeros(count) for _ in range(2)]
        self.parameters: dict[str, Any] = self.of(self.flat, torch.nn.Parameter)
        self.grads: dict[str, Any] = self.of(self.gradients)
        for name, parameter in self.parameters.items():
            parameter.grad = self.grads[name]

    def of(self, flat: Any, make: Callable[[Any], Any] = lambda part: part) -> dict[str, Any]:
        """Return the tensors that lie in a stretch of memory."""
        parts = flat.split([int(np.prod(shape)) for shape in self.shapes.values()])
        return {
            name: make(part.view(shape))
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def start(self) -> None:
        self.flat.copy_(self.at_start)
        self.gradients.copy_(self.gradients_at_start)
        for moment in self.moments:
            moment.zero_()

    def keep_moments(self, optimizer: Any, task: Task) -> Any:
        """Have an optimizer of torch, or one like it, keep its moments in the shared memory."""
        kinds = task.moments
        shared = [self.of(moment) for moment in self.moments[: len(kinds)]]
        for name, parameter in self.parameters.items():
            state = optimizer.state[parameter]
            if task.algorithm == "AdamW":
                state["step"] = self._zero.clone()
            state |= {kind: parts[name] for kind, parts in zip(kinds, shared, strict=True)}
        return optimizer

    def sample(self, flat: Any) -> Any:
        """Return what is compared of parameters."""
        if flat.element_size() == 2:
            blocks = flat[: max(1, len(flat) // BLOCK) * BLOCK].float().abs()
            return blocks.view(-1, min(BLOCK, len(blocks))).mean(1).numpy()
        return flat[:: max(1, len(flat) // SAMPLE)].numpy().copy()


def _ways(torch: Any, model: Model, task: Task) -> dict[str, Variant]:
    found: list[Any] = [None]
    sample, flat = model.sample, model.flat

    def outcome() -> list[Any]:
        """Return parameters, and the penalty: of these where a way does not say it."""
        value = found[0]
        if value is None:
            value = task.l1 * float(flat.abs().sum(dtype=torch.float64))
        return [sample(flat), np.array([float(value)])]

    def variant(make: Callable[[], Callable[[], Any]]) -> Variant:
        def made() -> Callable[[], object]:
            call = make()

            def taken() -> None:
                found[0] = call()

            return taken

        return Variant(made, model.start, outcome)

    ways = {
        "floor": variant(partial(_floor, torch, model, task)),
        "torch, fused alone": variant(lambda: _torch(torch, model, task, fused=True).step),
        "usual": variant(partial(_usual, torch, model, task, fused=True)),
    }
    if flat.element_size() == 4:
        ways["usual, foreach"] = variant(partial(_usual, torch, model, task, foreach=True))
    ways["fastreg.optimizers"] = variant(partial(_own, model, task))
    if hasattr(fastreg.torch, task.algorithm):
        ways["fastreg.torch"] = variant(partial(_own_torch, model, task))
    is_one = len(model.shapes) == 1 and flat.element_size() == 4
    if task is ADAMW and is_one and find_spec("jax") and find_spec("optax"):
        arrays: list[Any] = []
        ways["optax under jit, donated"] = Variant(
            partial(_optax, model, task, arrays),
            lambda: None,
            lambda: [np.asarray(sample(torch.from_numpy(np.array(arrays[0])))), arrays[2]],
        )
    return ways


def _torch(torch: Any, model: Model, task: Task, **how: bool) -> Any:
    parameters = model.parameters.values()
    if task.algorithm == "SGD":
        optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=MOMENTUM, **how)
    else:
        options = {"lr": LEARNING_RATE, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}
        optimizer = torch.optim.AdamW(parameters, **options, **how)
    return optimizer if model.flat.element_size() == 2 else model.keep_moments(optimizer, task)


def _usual(torch: Any, model: Model, task: Task, **how: bool) -> Callable[[], Any]:
    """Return what is written with torch's optimizer: passes before and after it."""
    if model.flat.element_size() == 2:
        return _by_hand(torch, model, task)
    optimizer = _torch(torch, model, task, **how)
    parameters = list(model.parameters.values())
    threshold = LEARNING_RATE * task.l1

    def penalty() -> Any:
        total: Any = 0.0
        for p in parameters:
            total = total + task.l1 * p.abs().sum()
        return total

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def shrink() -> float:
        for p in parameters:
            limit: Any = threshold
            if task.scaled:
                state = optimizer.state[p]
                correction = (1.0 - BETAS[1] ** float(state["step"])) ** 0.5
                limit = threshold / (state["exp_avg_sq"].sqrt().div_(correction).add_(EPS))
            p.sub_(p.clamp(-limit, limit))
        return float(penalty())

    def call() -> float:
        value = 0.0
        if task.mode == "gradient":
            loss = penalty()
            loss.backward()
            value = float(loss.detach())
        if task.guard and not all(bool(p.grad.isfinite().all()) for p in parameters):
            raise ValueError("a gradient is not finite")
        if task.clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, model.max_norm, foreach=True)
        optimizer.step()
        return value if task.mode == "gradient" else shrink()

    return call


def _by_hand(torch: Any, model: Model, task: Task) -> Callable[[], Any]:
    """Return AdamW with proximal L1 in float32: torch keeps moments in the parameter's dtype."""
    first, second = (torch.zeros(len(model.flat)) for _ in range(2))
    beta1, beta2 = BETAS
    steps = [0]

    def call() -> float:
        steps[0] += 1
        g = model.gradients.float()
        w = model.flat.float().mul_(1.0 - LEARNING_RATE * WEIGHT_DECAY)
        first.lerp_(g, 1.0 - beta1)
        second.mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
        root = second.sqrt().div_((1.0 - beta2 ** steps[0]) ** 0.5).add_(EPS)
        w.addcdiv_(first, root, value=-LEARNING_RATE / (1.0 - beta1 ** steps[0]))
        w.sub_(w.clamp(-LEARNING_RATE * task.l1, LEARNING_RATE * task.l1))
        model.flat.copy_(w)
        return task.l1 * float(model.flat.float().abs().sum())

    return call


def _own(model: Model, task: Task) -> Callable[[], Any]:
    def arrays(tensors: dict[str, Any]) -> dict[str, Any]:
        if model.flat.element_size() == 2:
            return {name: tensor.detach() for name, tensor in tensors.items()}
        return {name: tensor.detach().numpy() for name, tensor in tensors.items()}

    grads = arrays(model.grads)
    optimizer = getattr(fastreg.optimizers, task.algorithm)(
        arrays(model.parameters), **task.options(model.max_norm)
    )
    return lambda: optimizer.step(grads).penalty


def _own_torch(model: Model, task: Task) -> Callable[[], Any]:
    optimizer = getattr(fastreg.torch, task.algorithm)(
        model.parameters.items(), **task.options(model.max_norm)
    )
    model.keep_moments(optimizer, task)

    def call() -> Any:
        optimizer.step()
        return optimizer.last.penalty

    return call


def _floor(torch: Any, model: Model, task: Task) -> Callable[[], Any]:
    """Return bare additions of gradients to moments, and of those to parameters; see above."""
    core: Any = native_core()
    looks = task.guard or task.clip is not None
    read = [model.gradients] if looks else []
    if task.clip == "total":
        read.append(model.flat)
    moments = [torch.zeros(len(model.flat)) for _ in task.moments]
    if core is None:

        def add() -> None:
            for one in read:
                one.view(torch.uint8).max()
            last = model.gradients
            for moment in moments:
                last = moment.add_(last)
            model.flat.add_(last)

        return add
    kind = torch.int16 if model.flat.element_size() == 2 else model.flat.dtype
    arrays = [array.view(kind).numpy() for array in (model.flat, model.gradients)]
    reads = [array.view(kind).numpy() for array in read]
    kept = [moment.numpy() for moment in moments]

    def step() -> None:
        for one in reads:
            core.floor_read(one)
        core.floor_step(*arrays, *kept)

    return step


def _optax(model: Model, task: Task, latest: list[Any]) -> Callable[[], object]:
    jax: Any = importlib.import_module("jax")
    optax: Any = importlib.import_module("optax")
    jnp = jax.numpy
    optimizer = optax.adamw(
        LEARNING_RATE, b1=BETAS[0], b2=BETAS[1], eps=EPS, weight_decay=WEIGHT_DECAY
    )
    w = jnp.array(model.at_start.numpy())
    gradient = jnp.array(model.gradients_at_start.numpy())
    latest[:] = w, optimizer.init(w), np.zeros(1)
    threshold = LEARNING_RATE * task.l1

    def step(w: Any, state: Any, gradient: Any) -> Any:
        updates, state = optimizer.update(gradient, state, w)
        w = optax.apply_updates(w, updates)
        w = w - jnp.clip(w, -threshold, threshold)
        return w, state, task.l1 * jnp.abs(w).sum()

    program = jax.jit(step, donate_argnums=(0, 1))

    def call() -> None:
        w, state, value = jax.block_until_ready(program(latest[0], latest[1], gradient))
        latest[:] = w, state, np.array([float(value)])

    return call
