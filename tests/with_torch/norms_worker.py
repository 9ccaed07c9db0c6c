"""The processes of test_torch_norms_processes.py, as those of sharding_worker.py."""

from __future__ import annotations

import math
import re
import sys
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import sharding_worker
import torch
import torch.distributed as dist
from sharding_worker import Net, Tied, data, line, mine, seeded, sharded, square, whole
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import fastreg
from fastreg._norms import Norm


def world():
    return dist.get_world_size()


def rank():
    return dist.get_rank()


def canonical_sum(numbers):
    return fastreg.norms([np.array(numbers)])["0"].l1  # of numbers that are not negative


def by_parts(parts):
    """Return the norms of a tensor from those of its shards, in rank order."""
    found = [fastreg.norms([part])["0"] for part in parts]
    squares = [fastreg.norms([part.double().square()])["0"].l1 for part in parts]
    return Norm(
        canonical_sum([one.l1 for one in found]),
        math.sqrt(canonical_sum(squares)),
        max(one.maximum for one in found),
        sum(one.zeros for one in found),
        sum(one.nonfinite for one in found),
    )


def require_near(found, expected, tolerance=1e-14):
    assert found[2:] == expected[2:], (found, expected)
    for one, other in zip(found[:2], expected[:2], strict=True):
        assert math.isclose(one, other, rel_tol=tolerance), (found, expected)


def require_same_everywhere(found):
    everywhere = [None] * world()
    dist.all_gather_object(everywhere, found)
    assert all(repr(one) == repr(found) for one in everywhere), everywhere


@contextmanager
def gathers(count):
    with CommDebugMode() as communication:
        yield
    assert communication.get_total_counts() == count, communication.get_comm_counts()


def refused_everywhere(kind, text, call, *arguments):
    """Require an error in every process, and that the next collective operation is right."""
    with pytest.raises(kind, match=re.escape(text)):
        call(*arguments)
    ones = torch.ones(3)
    dist.all_reduce(ones)
    assert ones.tolist() == 3 * [world()]


def trained(model):
    x, y = map(mine, data())
    nn.functional.mse_loss(model(x), y).backward()
    return model


def tensors_of_one_mesh():
    """Uneven and empty shards, replicas, half precision, zeros and a plain array."""
    mesh = line()
    torch.manual_seed(2)
    full = [torch.randn(5, 1000), torch.randn(1, 4), torch.randn(40, 50), torch.randn(7)]
    full[0][2, 5:9] = 0.0
    full[2] = full[2].bfloat16()
    placements = [Shard(0), Shard(0), Shard(1), Replicate()]
    placed = {
        f"w{place}": distribute_tensor(tensor, mesh, [placement])
        for place, (tensor, placement) in enumerate(zip(full, placements, strict=True))
    }
    plain = torch.randn(9)
    with gathers(1):
        found = fastreg.norms({**placed, "plain": plain})
    one = fastreg.norms([*full, plain])
    for mine_, other in zip(found.values(), one.values(), strict=True):
        require_near(mine_, other)
    require_near(found.total, one.total)
    assert found["w0"] == by_parts(full[0].chunk(world()))
    assert found["w2"] == by_parts(full[2].chunk(world(), 1))
    assert (found["w3"], found["plain"]) == (one["3"], one["4"])
    require_same_everywhere((dict(found), found.total))


def a_module_of_fsdp2():
    model = sharded(seeded(Net), line())
    found = fastreg.norms(model)
    names = dict(model.named_parameters())
    assert list(found) == list(names)
    for name, parameter in names.items():
        require_near(found[name], fastreg.norms([whole(parameter)])["0"])


def clips_as_torch_does():
    for most in (1e-3, 1e9, math.inf):
        ours, theirs = (trained(sharded(seeded(Net), line())) for _ in range(2))
        with gathers(1):
            norm = fastreg.clip_by_global_norm(ours, most)
        wanted = nn.utils.clip_grad_norm_(theirs.parameters(), most).full_tensor()
        assert math.isclose(norm, float(wanted), rel_tol=1e-6)
        require_same_everywhere(norm)
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(whole(one.grad), whole(other.grad), rtol=1e-6, atol=0.0)
    gradients = [p.grad for p in ours.parameters()]
    total = fastreg.norms(gradients).total
    assert total.l2 == norm == fastreg.clip_by_global_norm(gradients, 1e-3)


def not_finite_on_one_rank():
    model = trained(sharded(seeded(Net), line()))
    named = dict(model.named_parameters())
    last = named["second.weight"].grad.to_local()
    if rank() == world() - 1:
        last.view(-1)[0] = math.inf
        named["first.weight"].grad.to_local().view(-1)[:2] = math.nan
    before = [p.grad.to_local().clone() for p in named.values()]
    text = "tensors['first.weight'] has 2 elements that are infinite or NaN"
    refused_everywhere(ValueError, text, fastreg.clip_by_global_norm, model, 1.0)
    for one, other in zip(before, named.values(), strict=True):
        torch.testing.assert_close(one, other.grad.to_local(), rtol=0, atol=0, equal_nan=True)
    found = fastreg.norms({name: p.grad for name, p in named.items()})
    assert [one.nonfinite for one in found.values()] == [2, 0, 0, 0, 1, 0, 0, 0]
    assert math.isnan(found.total.l2)
    assert math.isnan(fastreg.clip_by_global_norm(model, 1.0, on_nonfinite="ignore"))
    assert all(whole(p.grad).isnan().all() for p in named.values())


def a_replica_that_is_not_finite():
    """What is not finite in a replica alone is seen by all: they would part company else."""
    tensor = DTensor.from_local(torch.ones(4), line(), [Replicate()], run_check=False)
    if rank() == world() - 1:
        tensor.to_local()[1] = math.nan
    text = "tensors['w'] has 1 element that is infinite or NaN"
    refused_everywhere(ValueError, text, fastreg.clip_by_global_norm, {"w": tensor}, 1.0)


def every_magnitude():
    """Where squares leave float64, all processes measure again, also those that have small ones."""
    mesh = line()
    for large in (1e-200, 1e200, 1e308):
        local = torch.full((3,), large if rank() == 0 else 1e-3 * large, dtype=torch.float64)
        tensor = DTensor.from_local(local, mesh, [Shard(0)])
        small = distribute_tensor(torch.ones(world(), dtype=torch.float64), mesh, [Shard(0)])
        full = [tensor.full_tensor(), small.full_tensor()]
        found, one = fastreg.norms([tensor, small]), fastreg.norms(full)
        for place in ("0", "1"):
            require_near(found[place], one[place])
        require_near(found.total, one.total)
        norm = fastreg.clip_by_global_norm([tensor, small], 1.0)
        assert norm == found.total.l2
        fastreg.clip_by_global_norm(full, 1.0)
        torch.testing.assert_close(tensor.full_tensor(), full[0], rtol=1e-14, atol=5e-324)


def ties_count_once():
    torch.manual_seed(0)
    model = fully_shard(seeded(Tied), mesh=line())
    weight = model.head.weight
    row = distribute_tensor(torch.ones(1, 4), line(), [Shard(0)])
    found = fastreg.norms({"a": weight, "b": weight, "row": row, "again": row.detach()})
    assert found["a"] == found["b"]
    assert found["row"] == found["again"] == (4.0, 2.0, 1.0, 0, 0)
    one = fastreg.norms([whole(weight), torch.ones(4)])
    require_near(found.total, one.total)
    fastreg.clip_by_global_norm({"row": row, "again": row.detach()}, 1.0)
    torch.testing.assert_close(row.full_tensor(), torch.full((1, 4), 0.5), rtol=1e-6, atol=0.0)


def processes_that_disagree():
    mesh = line()
    w, other = (distribute_tensor(torch.ones(4), mesh, [Shard(0)]) for _ in range(2))
    clip = fastreg.clip_by_global_norm
    about = "the processes disagree about their tensors: "
    given = {"w": w, "other": other if rank() == 0 else None}
    refused_everywhere(RuntimeError, about + "'other' is ", fastreg.norms, given)
    text = about + "this call is a clip to 1.0 with on_nonfinite='raise' on rank 0, a clip to 2.0"
    refused_everywhere(RuntimeError, text, clip, [w], 1.0 + (rank() != 0))
    call = fastreg.norms if rank() == 0 else lambda tensors: clip(tensors, 1.0)
    refused_everywhere(RuntimeError, about + "this call is norms on rank 0, a clip to", call, [w])
    good, bad = torch.ones(3), np.ones(3)
    bad.flags.writeable = rank() == 0
    kind, text = (RuntimeError, "refused (tensors['2']") if rank() == 0 else (BufferError, "'2'")
    refused_everywhere(kind, text, clip, [w, good, bad], 1.0)
    assert whole(w).tolist() == [1.0] * 4
    assert good.tolist() == bad.tolist() == [1.0] * 3
    many = [distribute_tensor(torch.ones(2), mesh, [Shard(0)]) for _ in range(300)]
    with gathers(2):
        assert fastreg.norms(many).total.l1 == 600.0


def what_is_refused():
    mesh = line()
    partial = DTensor.from_local(torch.ones(4), mesh, [Partial()])
    w = distribute_tensor(torch.ones(4), mesh, [Shard(0)])
    other = distribute_tensor(
        torch.ones(4), DeviceMesh("cpu", [[r] for r in range(world())]), [Shard(0), Replicate()]
    )
    for call in (fastreg.norms, lambda tensors: fastreg.clip_by_global_norm(tensors, 1.0)):
        text = "tensors['p'] is a DTensor with the placements (Partial(sum),), which is no tensor"
        refused_everywhere(TypeError, text, call, {"w": w, "p": partial})
        refused_everywhere(TypeError, "tensors['o'] is a DTensor on", call, {"w": w, "o": other})
    weight = nn.Parameter(w)
    text = "tensors['w'] is a parameter of torch, whose weights would be scaled"
    refused_everywhere(TypeError, text, fastreg.clip_by_global_norm, {"w": weight}, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it is deprecated
        cpu = torch.device("cpu")
        model = FullyShardedDataParallel(seeded(Net), use_orig_params=True, device_id=cpu)
    for call in (fastreg.norms, lambda tensors: fastreg.clip_by_global_norm(tensors, 1.0)):
        refused_everywhere(TypeError, "FullyShardedDataParallel (FSDP1)", call, model)


def a_mesh_of_others():
    tensor = DTensor.from_local(torch.ones(3), DeviceMesh("cpu", [0]), [Shard(0)], run_check=False)
    if rank() == 0:
        assert fastreg.norms([tensor]).total == (3.0, math.sqrt(3.0), 1.0, 0, 0)


def two_dimensions():
    mesh = square("rows", "columns")
    torch.manual_seed(3)
    full = [torch.randn(5, 7), torch.randn(6, 4), torch.randn(3)]
    placements = [(Shard(0), Shard(1)), (Replicate(), Shard(0)), (Replicate(), Replicate())]
    placed = [
        distribute_tensor(one.clone(), mesh, places)
        for one, places in zip(full, placements, strict=True)
    ]
    with gathers(2):
        found = fastreg.norms(placed)
    one = fastreg.norms(full)
    for name, record in found.items():
        require_near(record, one[name])
    require_near(found.total, one.total)
    require_same_everywhere((dict(found), found.total))
    with gathers(2):
        norm = fastreg.clip_by_global_norm(placed, 0.5)
    assert norm == found.total.l2
    fastreg.clip_by_global_norm(full, 0.5)
    for tensor, other in zip(placed, full, strict=True):
        torch.testing.assert_close(tensor.full_tensor(), other, rtol=1e-6, atol=0.0)
    if rank() == 3:
        placed[1].to_local()[0] = math.nan  # a second replica
    text = "tensors['1'] has 4 elements that are infinite or NaN"
    refused_everywhere(ValueError, text, fastreg.clip_by_global_norm, placed, 1.0)


def hsdp():
    ours, theirs = (trained(sharded(seeded(Net), square("copy", "part"))) for _ in range(2))
    norm = fastreg.clip_by_global_norm(ours, 1e-3)
    wanted = nn.utils.clip_grad_norm_(theirs.parameters(), 1e-3).full_tensor()
    assert math.isclose(norm, float(wanted), rel_tol=1e-6)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(whole(one.grad), whole(other.grad), rtol=1e-6, atol=0.0)


WORLDS = {
    2: [
        tensors_of_one_mesh,
        a_module_of_fsdp2,
        clips_as_torch_does,
        not_finite_on_one_rank,
        a_replica_that_is_not_finite,
        every_magnitude,
        ties_count_once,
        processes_that_disagree,
        what_is_refused,
        a_mesh_of_others,
    ],
    4: [two_dimensions, hsdp],
}

if __name__ == "__main__":
    sharding_worker.main(WORLDS, *sys.argv[1:])
