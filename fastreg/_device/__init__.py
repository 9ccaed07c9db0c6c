"""Calls whose tensors lie on a CUDA device: described, judged, and handed to the CUDA backend.

Contract
--------
- Kernels run on the stream that the tensors are used on: torch's current stream, or the one that a
  ``__cuda_array_interface__`` names, else the default stream.  Nothing waits for the device, but
  what copies to the host: ``float(value)``, reports, and callables as rules.
- A result is of the kind of the first weight and on its device: see ``results``.
- Refusals are those of the host, by the same checks (``_checks``), before anything is queued.

The core makes a call of plain torch tensors by itself and asks for no more than the result
(``evaluate_described``).  All other calls come here whole: ``arrays`` describes what is foreign,
``evaluation`` judges it and makes the call, ``recording`` keeps what a captured call needs.
"""

from __future__ import annotations

from .arrays import any_view, host_copy, is_on_cuda, is_readable
from .evaluation import evaluate_described, evaluate_many, evaluate_one, shares_address
from .results import DeviceArray, DeviceValue, empty_like, to_jax

__all__ = [
    "DeviceArray",
    "DeviceValue",
    "any_view",
    "empty_like",
    "evaluate_described",
    "evaluate_many",
    "evaluate_one",
    "host_copy",
    "is_on_cuda",
    "is_readable",
    "shares_address",
    "to_jax",
]
