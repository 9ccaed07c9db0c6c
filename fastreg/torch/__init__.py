"""Penalties for PyTorch: differentiable, compiled and transformed."""
