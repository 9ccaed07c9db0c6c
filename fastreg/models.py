"""``from fastreg.models import Sequential``, for those who import it from ``keras.models``."""

from .layers.sequential import Sequential

__all__ = ["Sequential"]
