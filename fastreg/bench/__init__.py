"""Benchmarks: every cell of the product dtype x terms x outputs, against its floor and NumPy.

Run as ``python -m fastreg bench``. The modules, each with one reason to exist:

- ``cases``: what is measured and how many bytes it declares;
- ``peers``: who takes part: fastreg, the floors, NumPy by hand;
- ``step``: the penalties' share of a training step, with layers and by hand;
- ``measure``: interleaved timing and its statistics;
- ``table``, ``plot``, ``record``: the rows for the terminal, as a picture, as JSON;
- ``cli``: the options and the run.

Nothing is imported here, so that ``python -m fastreg`` stays quick. Rich, Matplotlib and ml_dtypes
are the extra ``bench``; without them the run stops early and says so.
"""
