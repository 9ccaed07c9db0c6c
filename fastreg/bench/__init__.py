"""Benchmarks: every cell of the product dtype x terms x outputs, against its floor and others.

Run as ``python -m fastreg bench``; ``tests/gpu/benchmark.py`` runs the same on a GPU. The modules,
each with one reason to exist:

- ``cases``, ``shapes``, ``workloads``: what is measured, the bytes it declares, its arrays;
- ``peers``: who takes part: fastreg, the floors, and other libraries, imported when asked for;
- ``accuracy``: how far a result is from float64;
- ``measure``, ``spread``: interleaved timing and its statistics;
- ``row``: what was measured, and the figures that follow from its samples;
- ``run``: from a case to a row;
- ``frameworks``: from other work, in a framework, to a row;
- ``step``: the penalties' share of a training step, with layers and by hand;
- ``circumstances``, ``record``: where and how it was measured, and rows as JSON and CSV;
- ``table``, ``plot``, ``screen``: rows as a table and as a picture, and the terminal;
- ``headline``, ``bars``, ``page``: the record of a processor, what it is meant to reach, and the
  tables of the documents;
- ``compare``, ``commits``, ``turns``: two records, or two commits measured by two processes;
- ``options``, ``cli``: the options and the runs.

Nothing is imported here, so that ``python -m fastreg`` stays quick. Rich, Matplotlib and ml_dtypes
are the extra ``bench``, the other libraries the extra ``peers``; a run that lacks one stops early
and says so.
"""
