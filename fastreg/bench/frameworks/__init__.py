"""The adapters as their users meet them: a penalty's share of a step, and the usual ways beside.

Run as ``python -m fastreg bench frameworks``. Each framework is measured in a process of its own:
Keras has one backend in a process, and thread pools of one framework disturb another.

- ``base``: the ways to do the work, checked and timed in turn;
- ``sizes``: how large that is;
- ``with_torch``, ``with_jax``, ``with_keras``: the rows of one framework each;
- ``with_norms``, ``with_optimizers``: those of clipping and of whole steps;
- ``worker``: the process of one framework.
"""
