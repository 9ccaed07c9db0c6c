"""Shards of parameters in code of your own: what this process holds, and sums over processes."""

from .._arrays.torch_shards import local_gradients, local_tensors, summed

__all__ = ["local_gradients", "local_tensors", "summed"]
