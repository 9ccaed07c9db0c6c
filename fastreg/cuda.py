"""CUDA graphs: calls that are captured once and replayed, with strengths that change in between.

A call on a stream that is being captured becomes part of the graph.  Its arrays and scales stay as
they were captured; its strengths lie in device memory, where :meth:`Recording.update` changes them.
Without a recording they stay as they were captured, too.  A captured step of an optimizer takes the
next step at each replay; its learning rate is one of the numbers that ``update()`` sends.

With torch::

    graph = torch.cuda.CUDAGraph()
    with fastreg.cuda.recording() as recording:
        with torch.cuda.graph(graph):
            loss = train_step()                       # forward, backward
            penalty = penalties.accumulate(grads)

    for step in range(steps):
        reg.l1 = 1e-5 * min(1.0, step / 1000)
        recording.update()                            # queued on torch's current stream
        graph.replay()

    recording.close()                                 # after the last replay
"""

from __future__ import annotations

from ._engine.recording import Recording

__all__ = ["Recording", "recording"]

# Pickles and messages name a class by its module: by this one, whichever file holds the class.
Recording.__module__ = __name__


def recording() -> Recording:
    """Return a recording of the calls that are captured into a CUDA graph in its ``with`` block.

    It is a context manager, once.  After the block, ``update()`` reads the strengths of the
    regularizers again for the replays to come, and ``close()`` frees memory after the last one.

    >>> from fastreg import cuda
    >>> with cuda.recording() as recording:
    ...     pass  # capture a graph here
    >>> recording
    <a recording of 0 calls, ready>
    >>> recording.close()
    """
    return Recording()
