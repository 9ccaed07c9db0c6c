"""How large the models and arrays are that the rows are measured on."""

from __future__ import annotations

from dataclasses import dataclass

#: So large that a step without the penalties leaves other weights: what is checked must show them.
L1_STRENGTH, L2_STRENGTH = 1e-3, 1e-2
LEARNING_RATE = 0.1


@dataclass(frozen=True)
class Sizes:
    """One set of sizes; each model is square layers with one width."""

    torch_layers: int
    torch_width: int
    keras_layers: int
    keras_width: int
    batch: int
    #: Of how many tensors the list of small ones is, and how many elements each has.
    tensors: int
    elements: int
    jax_elements: tuple[int, ...]
    #: Of all tensors together whose norm is taken.
    norm_elements: int
    #: Of one tensor that an optimizer steps, and what the sides of GPT-2's shapes are divided by.
    step_elements: int
    step_divisor: int
    #: Whether what takes seconds to compile takes part.
    compiled: bool


SIZES = {
    "full": Sizes(
        12, 512, 8, 256, 32, 400, 64, (64, 65_536, 16_777_216), 16_777_216, 16_777_216, 1, True
    ),
    "quick": Sizes(12, 512, 8, 256, 32, 400, 64, (64, 65_536), 4_194_304, 4_194_304, 4, False),
    "tiny": Sizes(2, 8, 2, 8, 4, 3, 5, (5,), 2_000, 2_000, 64, False),
}
