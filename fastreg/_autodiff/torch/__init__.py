"""Penalties that torch differentiates, compiles and transforms."""
