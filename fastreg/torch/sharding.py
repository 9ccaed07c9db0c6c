"""Public names for sharded parameters, documented where they live: ``_arrays/torch_shards.py``."""

from .._arrays.torch_shards import local_gradients, local_tensors, summed

__all__ = ["local_gradients", "local_tensors", "summed"]
