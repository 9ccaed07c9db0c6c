"""What to compute: the backends, the checks of a call, and CUDA.

Calls on CUDA
-------------
- Kernels run on the stream that the tensors are used on: torch's current stream, or the one that a
  ``__cuda_array_interface__`` names, else the default stream.  Only copies to the host wait for
  the device: ``float(value)``, reports, and callables as rules.
- A result is of the kind of the first weight and on its device: see ``_arrays.cuda_results``.
- Refusals are those of the host, by the same checks, before anything is queued.
"""
