"""Whose array: classes of torch in the table of libraries."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from fastreg._arrays import libraries  # noqa: E402
from fastreg._arrays.torch_arrays import Torch  # noqa: E402
from fastreg.regularizers import L1  # noqa: E402

# torch.compile warns of torch's own code
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Own(torch.Tensor):
    pass


def row_of(x):
    row = libraries.library_of(type(x))
    assert type(row) is Torch
    assert libraries.TABLE[type(x)] is row
    return row


def test_plain_tensors():
    for x in (torch.ones(3), torch.nn.Parameter(torch.ones(3))):
        row = row_of(x)
        assert row.is_plain
        assert row.port == "torch"


def test_subclasses():
    lazy = torch.nn.UninitializedParameter()
    for x in (torch.ones(3).as_subclass(Own), torch.nn.Buffer(torch.ones(3)), lazy):
        row = row_of(x)
        assert row.is_plain is (type(x) is torch.Tensor)
        assert row.port == "torch"


def test_fake_tensors_and_dtensors():
    from torch.distributed.tensor import DTensor

    with FakeTensorMode():
        fake = torch.ones(3)
    assert row_of(fake).is_fake
    sharded = row_of(torch.ones(3).as_subclass(DTensor))
    assert sharded.port == "dtensors"
    assert libraries.has_dtensors((torch.ones(3), torch.ones(3).as_subclass(DTensor)))
    assert not libraries.has_dtensors((torch.ones(3), np.ones(3)))


def test_a_class_that_only_has_the_name():
    for name in ("DTensor", "FakeTensor"):
        x = torch.full((3,), 2.0).as_subclass(type(name, (torch.Tensor,), {}))
        row = row_of(x)
        assert not row.is_fake
        assert row.port == "torch"
        assert L1(0.5)(x).item() == 3.0


def test_torch_is_imported_after_fastreg():
    """The first array that is seen is seen while torch.compile traces."""
    code = """if True:
        import fastreg, sys
        rule = fastreg.regularizers.L1(0.5)
        assert "torch" not in sys.modules
        class Other:
            pass
        try:
            rule(Other())
        except TypeError:
            pass
        import torch, warnings
        warnings.simplefilter("ignore")
        from torch._dynamo.testing import CompileCounterWithBackend
        class Own(torch.Tensor):
            pass
        for w in (torch.full((3,), 2.0), torch.full((3,), 2.0).as_subclass(Own)):
            counter = CompileCounterWithBackend("eager")
            compiled = torch.compile(rule, fullgraph=True, backend=counter)
            assert [float(compiled(w)), float(rule(w)), float(compiled(w))] == [3.0] * 3
            assert counter.frame_count == 1, counter.frame_count
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize("kind", [torch.Tensor, torch.nn.Parameter, Own])
def test_nothing_is_compiled_again_when_classes_are_seen(kind):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(L1(0.5), fullgraph=True, backend=counter)
    w = torch.full((3,), 2.0)
    w = torch.nn.Parameter(w) if kind is torch.nn.Parameter else w.as_subclass(kind)
    for _ in range(10):
        assert compiled(w).item() == 3.0
        new = type("New", (torch.Tensor,), {})
        assert L1(0.5)(torch.ones(2).as_subclass(new)).item() == 1.0
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
def test_what_breaks_the_graph_is_not_compiled_again_either():
    torch._dynamo.reset()

    def step(w, grad):
        L1(0.5).accumulate(w, grad)
        return w + 1

    compiled, w = torch.compile(step, backend="eager"), torch.ones(2)
    for _ in range(3):
        compiled(w, torch.zeros(2))
    frames = dict(torch._dynamo.utils.counters["frames"])
    for _ in range(10):
        new = type("New", (torch.Tensor,), {})
        L1(0.5).accumulate(w, torch.zeros(2).as_subclass(new))
        compiled(w, torch.zeros(2))
    assert dict(torch._dynamo.utils.counters["frames"]) == frames


def test_tensors_of_many_classes_are_marked_as_written():
    grads = [torch.zeros(2), torch.zeros(2).as_subclass(Own), np.zeros(2, np.float32)]
    before = [grad._version for grad in grads[:2]]
    from fastreg._arrays import results

    results.all_written(grads)
    assert [grad._version for grad in grads[:2]] == [version + 1 for version in before]
