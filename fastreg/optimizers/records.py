"""What a step reports."""

from __future__ import annotations

from typing import Any, NamedTuple

from .._arrays.device_array import DeviceCount


class StepRecord(NamedTuple):
    """What a step has come to; the penalty and zeros are of the tensors that have a rule.

    Tensors without a gradient took no part, and do not count.  Of tensors on a CUDA device the
    numbers stay there, 0-d in the kind of the first, and nothing waits for them; `skipped` is then
    1 or 0.

    >>> StepRecord(penalty=0.5, norm=None, zeros=3, skipped=False, size=4).sparsity
    0.75
    """

    penalty: float
    """The canonical sum of the penalties: after the step, but before it for rules of the mode
    "gradient", whose gradient was taken there, and where the step was skipped."""
    norm: float | None
    """The L2 norm of the gradients before the clip; None where nothing was clipped or guarded."""
    zeros: int
    """How many elements are 0 after the step, of either sign."""
    skipped: bool
    """Whether the step was left out, for gradients that are not finite."""
    size: int
    """How many elements there are."""

    @property
    def sparsity(self) -> float:
        """The share of zeros, from 0 to 1; 0.0 without elements.

        On a device 0-d there; of arrays of no framework it is a float, and waited for.
        """
        zeros: Any = self.zeros
        if isinstance(zeros, DeviceCount):
            zeros = int(zeros)
        found: float = zeros / self.size if self.size else 0.0
        return found


# The package makes itself the module of this class; doctest then needs to be told of it.
__test__: dict[str, object] = {"StepRecord": StepRecord}
