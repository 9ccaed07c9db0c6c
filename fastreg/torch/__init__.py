"""Penalties in training loops of PyTorch: fused.

>>> import torch, fastreg.torch
>>> from fastreg import regularizers
>>> model = torch.nn.Linear(2, 1)
>>> reg = regularizers.L1L2(l1=1e-5, l2=1e-4)
>>> penalties = fastreg.torch.attach(model, fastreg.torch.kernels(reg))
>>> loss = model(torch.zeros(1, 2)).sum() + penalties.value()
>>> loss.backward()

``backward()`` adds the gradients of all penalties to ``.grad`` in one native call, so that what
comes after it (clipping, ``GradScaler``, the optimizer) sees the gradient of the sum.

A regularizer that is called with a tensor (``reg(tensor)``) is differentiable; see
``fastreg.regularizers``.
"""

from __future__ import annotations

try:
    import torch as _torch
except ImportError as _error:
    raise ImportError(
        f"fastreg.torch needs PyTorch 2.6 or later ({_error}); install fastreg-kernels[torch]"
    ) from _error

if tuple(int(part) for part in _torch.__version__.split(".")[:2]) < (2, 6):
    raise ImportError(
        f"fastreg.torch needs PyTorch 2.6 or later, not {_torch.__version__}; install "
        "fastreg-kernels[torch]"
    )

from .attached import Penalties, attach
from .kinds import kernels
from .optimizers import SGD, AdamW
from .steps import StepHandle

__all__ = ["SGD", "AdamW", "Penalties", "StepHandle", "attach", "kernels"]

# Messages name a class by its module: by this one, whichever file holds the class.
for _class in (SGD, AdamW, Penalties, StepHandle):
    _class.__module__ = __name__
del _class
