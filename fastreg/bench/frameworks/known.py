"""The frameworks that can be measured: what each needs, and where its rows come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec


@dataclass(frozen=True)
class Framework:
    """One process' worth of rows."""

    #: What must be installed, by module name; their versions go into the record.
    modules: tuple[str, ...]
    #: The module of this package that has its ``settings``.
    rows: str
    environment: dict[str, str] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """Return what is not installed of that."""
        return [module for module in self.modules if find_spec(module) is None]


FRAMEWORKS = {
    "torch": Framework(("torch",), "with_torch"),
    "norms": Framework(("torch",), "with_norms"),
    "optimizers": Framework(("torch",), "with_optimizers"),
    "jax": Framework(("jax",), "with_jax"),
    "keras-torch": Framework(("keras", "torch"), "with_keras", {"KERAS_BACKEND": "torch"}),
    "keras-jax": Framework(("keras", "jax"), "with_keras", {"KERAS_BACKEND": "jax"}),
}
