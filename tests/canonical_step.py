"""The step of an optimizer (docs/numerics.md, 12) in plain Python: the oracle of the tests.

It shares no code with the package.  Every operation on float32 numbers is done in float64 and
rounded, which gives the bits of float32 arithmetic for sums, products, quotients and square roots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import canonical


@dataclass(frozen=True)
class Options:
    """What a step of a tensor is given; None stands for what was not asked for."""

    algorithm: str = "sgd"
    lr: float = 0.1
    mode: str | None = None  # "gradient", "proximal", "scaled", "decoupled"
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    amsgrad: bool = False
    maximize: bool = False
    cautious: bool = False
    l1: float = 0.0
    l2: float = 0.0
    factor: float = 0.0
    loss_scale: float | None = None
    clip: str | None = None  # "data", "total"


@dataclass
class Tensor:
    """A tensor with what a step reads and writes, as lists of floats."""

    w: list[float]
    dtype: str
    m: list[float] | None = None
    v: list[float] | None = None
    h: list[float] | None = None
    t: int = 0
    penalty: float = 0.0
    zeros: int = 0

    @property
    def compute(self):
        return (lambda x: x) if self.dtype == "f64" else canonical.round_f32


def power(base, exponent):
    result = 1.0
    for bit in reversed(f"{exponent:b}"):
        if bit == "1":
            result = result * base
        base = base * base
    return result


def quotient(a, b):
    if b != 0.0 or a != a:
        return a / b if b != 0.0 else a
    if a == 0.0:
        return math.nan
    return math.copysign(math.inf, a) * math.copysign(1.0, b)


def root(x):
    return math.sqrt(x) if x >= 0.0 else math.nan


def clip_line(tensor, gradient, options):
    """Return d at the line of the clip; of the first line where nothing is clipped."""
    r = tensor.compute
    result = []
    for w, g in zip(tensor.w, gradient, strict=True):
        d = unscaled(g, options, r)
        if options.clip == "total":
            d = with_penalty(d, w, options, r)
        result.append(d)
    return result


def unscaled(g, options, r):
    d = r(g)
    if options.loss_scale is not None:
        d = r(d * r(1.0 / options.loss_scale))
    return -d if options.maximize else d


def with_penalty(d, w, options, r):
    l1, l2 = options.l1, options.l2
    if options.mode != "gradient" or (l1 == 0.0 and l2 == 0.0):
        return d
    one, two = r(r(l1) * canonical.sign(w)), r(r(2.0 * l2) * w)
    if l1 == 0.0:
        return r(d + two)
    return r(d + (one if l2 == 0.0 else r(one + two)))


def prox(u, t1, t2, r):
    """t1 or t2 is None where that strength is absent."""
    if t1 is not None:
        a = r(abs(u) - t1)
        u = math.copysign(a, u) if a > 0 else (a if a != a else 0.0)
    return u if t2 is None else r(quotient(u, t2))


def take(tensor, gradient, options, c=1.0):
    """Take the step of a tensor in place."""
    o, r = options, tensor.compute
    sgd = o.algorithm == "sgd"
    wd, mu, lr, eps = r(o.weight_decay), r(o.momentum), r(o.lr), r(o.eps)
    undamped, c = r(1.0 - o.dampening), r(c)
    b1, b2 = r(o.betas[0]), r(o.betas[1])
    c1, c2 = r(1.0 - o.betas[0]), r(1.0 - o.betas[1])
    t = tensor.t + 1
    size = r(o.lr / (1.0 - power(o.betas[0], t)))
    correction = r(math.sqrt(1.0 - power(o.betas[1], t)))
    shrink = r(1.0 - o.lr * o.weight_decay)
    has_l1, has_l2 = o.l1 != 0.0, o.l2 != 0.0
    if not sgd and tensor.m is None:
        tensor.m, tensor.v = [0.0] * len(tensor.w), [0.0] * len(tensor.w)
        tensor.h = [0.0] * len(tensor.w) if o.amsgrad else None
    is_first = sgd and tensor.m is None
    if sgd and o.momentum and is_first:
        tensor.m = [0.0] * len(tensor.w)
    before = canonical.penalty(tensor.w, o.l1, o.l2)
    result = []
    for i, (w, g) in enumerate(zip(tensor.w, gradient, strict=True)):
        d = unscaled(g, o, r)
        if o.clip == "data":
            d = r(d * c)
        d = with_penalty(d, w, o, r)
        if o.clip == "total":
            d = r(d * c)
        moved = w
        q = None
        if sgd:
            if o.weight_decay:
                d = r(d + r(wd * w))
            e = d
            if o.momentum:
                m = d if is_first else r(r(mu * tensor.m[i]) + r(undamped * d))
                tensor.m[i] = m
                e = r(d + r(mu * m)) if o.nesterov else m
            s = r(lr * e)
        else:
            m = r(r(b1 * tensor.m[i]) + r(c1 * d))
            v = r(r(b2 * tensor.v[i]) + r(r(c2 * d) * d))
            tensor.m[i], tensor.v[i] = m, v
            if o.amsgrad:
                h = tensor.h[i]
                v = math.nan if h != h or v != v else max(v, h)  # v where they are equal: +0
                tensor.h[i] = v
            q = r(r(quotient(r(root(v)), correction)) + eps)
            s = r(size * r(quotient(m, q)))
            if o.weight_decay:
                moved = r(w * shrink)
        decouples = o.mode == "decoupled"
        if decouples and o.cautious:
            decouples = not (s > 0 > w or s < 0 < w)
        if decouples and has_l2:
            moved = r(moved * r(1.0 - o.factor * (2.0 * o.l2)))
        u = r(moved - s)
        if decouples and has_l1:
            u = prox(u, r(o.factor * o.l1), None, r)
        if o.mode in ("proximal", "scaled"):
            t1, t2 = r(o.lr * o.l1), r(1.0 + o.lr * (2.0 * o.l2))
            if o.mode == "scaled":
                t1 = r(quotient(t1, q))
                t2 = r(1.0 + r(quotient(r(o.lr * (2.0 * o.l2)), q)))
            u = prox(u, t1 if has_l1 else None, t2 if has_l2 else None, r)
        result.append(canonical.rounded(u, tensor.dtype))
    tensor.w = result
    tensor.t = t
    if o.mode is not None:
        after = canonical.penalty(result, o.l1, o.l2)
        tensor.penalty = before if o.mode == "gradient" else after
        tensor.zeros = sum(x == 0 for x in result)
