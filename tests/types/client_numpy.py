"""What a user of NumPy has of the types; checked, and run."""

from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

import fastreg
from fastreg import optimizers, penalties, regularizers

Array = npt.NDArray[np.float32]

w: Array = np.zeros((3, 4), np.float32)
params: dict[str, Array] = {"kernel": w, "bias": np.zeros(4, np.float32)}
grads = {name: np.zeros_like(one) for name, one in params.items()}

# One tensor.
l1 = fastreg.regularizers.L1(0.01)
assert_type(l1, regularizers.L1)
assert_type(l1(w), float)
assert_type(l1(w, scale=np.float32(0.5)), float)
assert_type(l1(memoryview(b"1234")), Any)
assert_type(l1.l1, float)
l1.l1 = 1
l1.l1 = np.float32(0.5)
assert_type(l1.gradient(w), Array)
assert_type(l1.gradient(w, out=w), Array)
assert_type(regularizers.L1L2(l1=1e-5, l2=1e-4).value_and_grad(w), tuple[float, Array])
assert_type(regularizers.l2(1e-4).accumulate(w, grads["kernel"], scale=0.5), float)
assert_type(l1.prox(w, 0.1), Array)
assert_type(l1.prox(w, 0.1, out=w), Array)
assert_type(l1.get_config(), dict[str, Any])
assert_type(regularizers.L2.from_config({"l2": 0.5}), regularizers.L2)
assert_type(regularizers.OrthogonalRegularizer(mode="columns")(w), float)
assert_type(regularizers.get("l1"), regularizers.Regularizer)
assert_type(regularizers.get(l1), regularizers.L1)
assert_type(regularizers.get(regularizers.L2), regularizers.L2)
assert_type(regularizers.get(None), None)
assert_type(regularizers.serialize(l1), dict[str, Any])

# Many tensors.
attached = fastreg.attach(params, {"*kernel": l1, "bias": None})
assert_type(attached, fastreg.Penalties[float, Array])
assert_type(attached.value(scale=0.5), float)
assert_type(attached.gradient(), dict[str, Array])
assert_type(attached.value_and_grad(), tuple[float, dict[str, Array]])
assert_type(attached.accumulate(grads), float)
assert_type(attached.accumulate(grads, tensors=params, scale=2), float)
step = attached.prox(0.1)
assert_type(step, penalties.ProxRecord)
assert_type(step.size, int)
assert_type(attached.report()["kernel"].penalty, float)
assert_type(fastreg.attach([w], "l2").value(), float)
fastreg.attach(params, lambda one: float(np.abs(one).max()))
saved: dict[str, Any] = {"class_name": "L1", "config": {"l1": 0.5}}
fastreg.attach(params, saved)
fastreg.attach(params, regularizers.serialize(l1))
fastreg.attach(params, regularizers.L1)


def attach_again(found: fastreg.Penalties) -> None:  # without what its values are
    assert_type(found.value(), Any)


attach_again(attached)


# Norms.
norms = fastreg.norms(grads)
assert_type(norms.total.l2, float)
assert_type(norms["kernel"].zeros, int)
assert_type(fastreg.clip_by_global_norm(grads, 1.0), float)
assert_type(fastreg.clip_by_global_norm(grads, 1.0, on_nonfinite="ignore"), float)

# Optimizers.
sgd = fastreg.optimizers.SGD(params, lr=0.1, momentum=0.9, rules={"*kernel": (l1, "decoupled")})
assert_type(sgd, optimizers.SGD)
record = sgd.step(grads, found_inf=False)
assert_type(record, optimizers.StepRecord)
assert_type(record.norm, float | None)
assert_type(record.sparsity, float)
assert_type(sgd.state_dict(), dict[str, Any])
sgd.lr = 0.05
optimizers.AdamW([w], lambda done: 0.1 / (1 + done), rules="l1_l2", mode="gradient")

# The rest.
assert_type(fastreg.get_num_threads(), int)
assert_type(fastreg.get_instruction_set(), str)
assert_type(fastreg.__version__, str)
layer = fastreg.layers.Dense(4, kernel_regularizer=l1)
model = fastreg.Sequential([layer])
assert_type(model, fastreg.models.Sequential)
