"""Wrong uses: each line with the mark is an error to both checkers, and no other line is."""

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import torch

import fastreg
import fastreg.jax
import fastreg.torch
from fastreg.regularizers import L1, OrthogonalRegularizer, get

w: npt.NDArray[np.float32] = np.zeros(3, np.float32)
params = {"kernel": w}
l1 = L1(0.01)

# One tensor.
L1("0.01")  # error
l1("text")  # error
l1([1.0, 2.0])  # error
l1(3.0)  # error
l1(w, 0.5)  # error
l1(w, scale="0.5")  # error
l1.l1 = "0.01"  # error
l1.L1 = 0.01  # error
l1.prox(w)  # error
l1.prox(w, "0.1")  # error
l1.accumulate(w)  # error
l1.accumulate(w, [0.0, 0.0, 0.0])  # error
a: int = l1.gradient(w)  # error
OrthogonalRegularizer(mode="diagonal")  # error
get(0.01)  # error

# Many tensors.
fastreg.atach(params, l1)  # error
fastreg.attach(w, l1)  # error
fastreg.attach(params)  # error
fastreg.attach(params, 0.01)  # error
fastreg.attach(params, {"*kernel": 0.01})  # error
attached = fastreg.attach(params, l1)
attached.value(w)  # error
attached.accumulate()  # error
attached.prox()  # error
b: str = attached.value()  # error
c: dict[str, torch.Tensor] = attached.gradient()  # error
fastreg.norms(w)  # error
fastreg.clip_by_global_norm(params)  # error
fastreg.clip_by_global_norm(params, "1")  # error
fastreg.clip_by_global_norm(params, 1.0, on_nonfinite="skip")  # error

# Optimizers.
fastreg.optimizers.SGD(params)  # error
fastreg.optimizers.SGD(params, "0.1")  # error
fastreg.optimizers.SGD(params, 0.1, mode="proximl")  # error
fastreg.optimizers.SGD(params, 0.1, rules={"*": (l1, "proximl")})  # error
fastreg.optimizers.AdamW(params, clip="all")  # error
fastreg.optimizers.AdamW(params, on_nonfinite="stop")  # error
sgd = fastreg.optimizers.SGD(params, 0.1)
sgd.lr = "0.1"  # error
sgd.step()  # error
sgd.step(w)  # error
sgd.step(params).norm = 1.0  # error
d: float = sgd.step(params).norm  # error

# torch.
module = torch.nn.Linear(3, 1)
fastreg.torch.attach(torch.nn.Linear, l1)  # error
fastreg.torch.attach(module, 0.01)  # error
fastreg.torch.attach(module, l1, activity_reduction="men")  # error
found = fastreg.torch.attach(module, l1)
e: torch.Tensor = found.accumulate(value=False)  # error
found.before_step(torch.optim.SGD(module.parameters()), max_norm="1")  # error
fastreg.torch.SGD(module, rules={"*": 0.01})  # error
fastreg.torch.SGD(module).step(w)  # error

# JAX.
tree = fastreg.jax.attach({"kernel": jnp.ones(3)}, l1)
fastreg.jax.attach({"kernel": jnp.ones(3)}, 0.01)  # error
tree.value()  # error
f: list[int] = tree.gradient({"kernel": jnp.ones(3)})  # error
fastreg.jax.penalty("text", l1=0.01)  # error
fastreg.jax.add_penalty(0.01)  # error
