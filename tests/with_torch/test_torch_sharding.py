"""DTensors, FSDP2, HSDP and DDP: several processes with gloo give what one process gives."""

import os
from pathlib import Path

import pytest
from worlds import cases, require_good, run

from fastreg import regularizers

torch = pytest.importorskip("torch")
if not torch.distributed.is_available() or not hasattr(os, "fork"):
    pytest.skip("torch without torch.distributed, or no fork", allow_module_level=True)

WORKER = Path(__file__).with_name("sharding_worker.py")
CASES = cases(WORKER)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return run(WORKER, tmp_path_factory.mktemp("stores"))


@pytest.mark.parametrize("case", CASES)
def test_processes(outcomes, case):
    require_good(outcomes, case, CASES[case])


# Dynamo's own way with functions of autograd.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # before 2.13
def test_compiles_in_one_graph():
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (2,))
        shard = torch.linspace(-1.0, 1.0, 6).reshape(2, 3)
        weight = torch.nn.Parameter(DTensor.from_local(shard, mesh, [Shard(0)]))
        reg = regularizers.L1L2(0.1, 0.2)
        whole = torch.__version__ >= (2, 13)
        if not whole:  # there the gradient would be zero
            with pytest.raises(torch._dynamo.exc.Unsupported):
                torch.compile(lambda w: reg(w), backend="aot_eager", fullgraph=True)(weight)
        value = torch.compile(lambda w: reg(w), backend="aot_eager", fullgraph=whole)(weight)
        assert torch.equal(value, reg(weight))  # the other process has no elements
        value.backward()
        assert weight.grad.placements == weight.placements
        assert torch.equal(weight.grad.to_local(), reg.gradient(shard))
    finally:
        distributed.destroy_process_group()
        torch.compiler.reset()
