"""What a user of torch has of the types; checked, and run."""

import torch
from typing_extensions import assert_type

import fastreg.torch
from fastreg import optimizers, penalties
from fastreg.regularizers import L1, L1L2, L2

module = torch.nn.Linear(8, 4)
w = torch.ones(3, requires_grad=True)
grad = torch.zeros(3)

# One tensor.
assert_type(L1(0.01)(w), torch.Tensor)
assert_type(L1(0.01)(module.weight), torch.Tensor)
assert_type(L2(0.01).gradient(w), torch.Tensor)
assert_type(L2(0.01).gradient(w, grad), torch.Tensor)
assert_type(L2(0.01).value_and_grad(w), tuple[torch.Tensor, torch.Tensor])
assert_type(L1(0.01).accumulate(w, grad), float | torch.Tensor)
assert_type(L1(0.01).prox(w, 0.1), torch.Tensor)

# Many tensors.
attached = fastreg.attach({"w": w}, "l2")
assert_type(attached, fastreg.Penalties[float | torch.Tensor, torch.Tensor])
assert_type(attached.gradient(), dict[str, torch.Tensor])
fastreg.attach(dict(module.named_parameters()), {"*weight": L1(0.01)})
fastreg.attach(list(module.parameters()), L1(0.01))
assert_type(fastreg.norms(module).total.l2, float)
assert_type(fastreg.clip_by_global_norm(module, 1.0), float)
assert_type(fastreg.clip_by_global_norm([p.grad for p in module.parameters()], 1.0), float)

# A module.
rule = fastreg.torch.kernels(L1L2(l1=1e-5, l2=1e-4))
found = fastreg.torch.attach(module, rule)
assert_type(found, fastreg.torch.Penalties)
fastreg.torch.attach(module, {"*weight": rule, "*": None}, {"0": L1(0.01)}, allow_unmatched=True)
fastreg.torch.attach(module, lambda name, parameter: L1(0.1) if parameter.ndim > 1 else None)
loss = module(torch.ones(2, 8)).sum() + found.value()
assert_type(w.sum() + found.value(), torch.Tensor)
assert_type(found.value(), torch.Tensor | float)
assert_type(found.accumulate(), float | torch.Tensor)
assert_type(found.accumulate(value=False), None)
assert_type(found.prox(0.1), penalties.ProxRecord)
assert_type(found.report(), penalties.Report)
assert_type(found.activity(), torch.Tensor)
handle = found.before_step(torch.optim.SGD(module.parameters(), lr=0.1), max_norm=None)
assert_type(handle, fastreg.torch.StepHandle)
with found as inside:
    assert_type(inside, fastreg.torch.Penalties)

# Optimizers.
sgd = fastreg.torch.SGD(module, lr=0.1, rules=rule, mode="proximal")
adamw = fastreg.torch.AdamW(module.named_parameters(), rules={"weight": (L1(0.01), "gradient")})
fastreg.torch.SGD(module.parameters(), lr=torch.tensor(0.1), rules="l1", foreach=False)
fastreg.torch.SGD([{"params": module.parameters(), "lr": 0.5}], rules=L1(0.01))
assert_type(sgd.step(), None)
assert_type(sgd.step(lambda: w.sum()), torch.Tensor)
assert_type(adamw.last, optimizers.StepRecord | None)
torch.optim.lr_scheduler.StepLR(sgd, 10)
assert_type(sgd.steps, int)
