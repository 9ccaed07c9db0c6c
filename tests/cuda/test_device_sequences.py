"""Steps, captures, replays and loads in any order, on the stand-in: the bits of the host."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import numpy as np
import pytest
from device_fakes import Runtime
from stand_in_arrays import LIBRARY
from test_device_steps import OPTIONS, Captured, gradients, same_arrays, same_numbers, same_state

import fastreg

pytestmark = pytest.mark.skipif(not LIBRARY, reason="FASTREG_CUDA_LIBRARY names no stand-in")

KINDS = ("step", "capture", "replay", "replay", "load", "look")


class Graph(NamedTuple):
    """A step that was captured."""

    replay: Any
    record: Any
    recording: Any
    missing: str | None
    """The tensor without a gradient."""
    loss_scale: float


class Sequence:
    """A sequence that a seed decides."""

    def __init__(self, runtime: Runtime, seed: int) -> None:
        self.runtime, self.random = runtime, random.Random(seed)
        choice = self.random.choice
        self.guard = choice(("skip", "ignore"))
        options: dict[str, Any] = {"on_nonfinite": self.guard}
        if choice((True, False)):
            options |= {"max_norm": choice((0.0, 0.5, 1e9)), "clip": choice(("total", "data"))}
        self.one = Captured(runtime, choice([*OPTIONS]), **options)
        self.graphs: list[Graph] = []
        self.is_found, self.grads = False, gradients(0)

    def write(self) -> None:
        """Put other numbers where the device reads them."""
        choice = self.random.choice
        seed, self.is_found = choice(range(50)), choice((True, False, False, False))
        self.one.write(seed, choice((0.0, 0.02, 0.1)), choice((0.0, 1.0, 2.0)), self.is_found)
        self.grads = gradients(seed)
        if self.guard == "skip" and choice((True, False, False)):
            self.grads["c"][1, 1] = np.nan
            self.one.put(self.one.grads["c"], self.grads["c"])

    def compare(self, record: Any, missing: str | None, **options: Any) -> None:
        self.runtime.drain()
        grads = {name: None if name == missing else g for name, g in self.grads.items()}
        expected = self.one.here.step(grads, **options)
        if expected.norm is None:  # the host does not look where found_inf is set
            record = record._replace(norm=None)
        same_numbers(record, expected)
        same_arrays(self.one.tensors, self.one.host)

    def take(self, kind: str) -> None:
        choice, one = self.random.choice, self.one
        missing, loss_scale = choice((None, "a", "d")), choice((1.0, 8.0))
        sent = {name: None if name == missing else g for name, g in one.grads.items()}
        if kind == "step":
            self.write()
            found = choice((None, self.is_found, one.flag))
            record = one.there.step(sent, found_inf=found, loss_scale=loss_scale)
            is_found = None if found is None else self.is_found
            self.compare(record, missing, found_inf=is_found, loss_scale=loss_scale)
        elif kind == "capture":
            with fastreg.cuda.recording() as kept, self.runtime.capture(one.stream) as replays:
                record = one.there.step(sent, found_inf=one.flag, loss_scale=loss_scale)
            self.graphs.append(Graph(replays[0], record, kept, missing, loss_scale))
        elif kind == "replay" and self.graphs:
            graph = choice(self.graphs)
            self.write()
            if choice((True, False)):
                graph.recording.update()
            graph.replay()
            options = {"found_inf": self.is_found, "loss_scale": graph.loss_scale}
            self.compare(graph.record, graph.missing, **options)
        elif kind == "load":
            one.there.load_state_dict(one.here.state_dict())
            self.close()
        elif kind == "look":
            assert one.there.steps == one.here.steps
            same_state(one.there.state_dict(), one.here.state_dict())

    def close(self) -> None:
        """Let go of the graphs: the state of which they are is no longer the optimizer's."""
        self.runtime.drain()
        for graph in self.graphs:
            graph.recording.close()
        self.graphs.clear()


@pytest.mark.parametrize("seed", range(16))
def test_sequences(runtime: Runtime, seed: int) -> None:
    sequence = Sequence(runtime, seed)
    for _ in range(14):
        sequence.take(sequence.random.choice(KINDS))
    sequence.take("look")
    sequence.close()
