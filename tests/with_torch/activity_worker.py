"""The processes of test_torch_activity_processes.py, as those of sharding_worker.py."""

from __future__ import annotations

import sys

import pytest
import sharding_worker
import torch
import torch.distributed as dist
from sharding_worker import close, mine, seeded, whole
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from fastreg import regularizers
from fastreg.torch import attach

REG = regularizers.L1L2(0.1, 0.2)
BATCH = 8


class Block(nn.Module):
    """Two layers with an activation between them."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, 4)
        self.act = nn.Tanh()
        self.down = nn.Linear(4, 6)

    def forward(self, x):
        return self.down(self.act(self.up(x)))


class Net(nn.Module):
    """Two blocks, which may be checkpointed, and a head."""

    def __init__(self, inside=False, around=False):
        super().__init__()
        self.units = nn.ModuleList([Unit(inside), Unit(inside)])
        self.head = nn.Linear(6, 1)
        self.around = around

    def forward(self, x):
        for unit in self.units:
            x = checkpoint(unit, x, use_reentrant=False) if self.around else unit(x)
        return self.head(x)


class Unit(nn.Module):
    """A block, which may be checkpointed, and a layer."""

    def __init__(self, inside):
        super().__init__()
        self.block = Block()
        self.last = nn.Linear(6, 6)
        self.inside = inside

    def forward(self, x):
        x = checkpoint(self.block, x, use_reentrant=False) if self.inside else self.block(x)
        return self.last(x)


def data():
    torch.manual_seed(1)
    return torch.randn(BATCH, 6)


def loss_of(model, x):
    return model(x).square().mean()


def gradients(model):
    return {
        name.removeprefix("module."): whole(parameter.grad)
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def alone(make, rules, reduction, losses=(1.0, 1.0)):
    """Return the penalty and the gradients of one process with the whole batch."""
    model = seeded(make)
    penalties = attach(model, {}, rules, activity_reduction=reduction)
    loss = loss_of(model, data())
    activity = penalties.activity(scale=1.0)
    (losses[0] * loss + losses[1] * activity if losses[0] else activity).backward()
    return activity.item(), gradients(model)


def same_gradients(model, expected):
    found = gradients(model)
    assert expected
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def average(value):
    """Return the mean of a number over the processes."""
    total = torch.tensor(float(value), dtype=torch.float64)
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


def data_parallel(wrap, attach_to, prefix, reduction):
    """Compare the mean over the processes, and the averaged gradients, with one process."""
    value, expected = alone(Net, {"units.*.act": REG}, reduction)
    inner = seeded(Net)
    model = wrap(inner)
    target = model if attach_to == "wrapper" else inner
    penalties = attach(target, {}, {f"{prefix}units.*.act": REG}, activity_reduction=reduction)
    loss = loss_of(model, mine(data()))
    activity = penalties.activity()
    (loss + activity).backward()
    close(average(activity.item()), value, 1e-5)
    same_gradients(model, expected)


def ddp_mean():
    data_parallel(DistributedDataParallel, "wrapper", "module.", "mean")


def ddp_sum():
    data_parallel(DistributedDataParallel, "wrapper", "module.", "sum")


def ddp_sum_of_the_model_inside():
    data_parallel(DistributedDataParallel, "model", "", "sum")


def shard(model):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for unit in model.units:
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    return fully_shard(model, mesh=mesh, reshard_after_forward=True)


def fsdp2_mean():
    data_parallel(shard, "wrapper", "", "mean")


def fsdp2_sum():
    data_parallel(shard, "wrapper", "", "sum")


def fsdp2_sum_with_another_factor():
    def wrap(model):
        shard(model)
        for unit in (model, *model.units):
            unit.set_force_sum_reduction_for_comms(True)
            unit.set_gradient_divide_factor(1.0)
        return model

    if not hasattr(FSDPModule, "set_gradient_divide_factor"):
        return  # this torch has no such factor

    _, expected = alone(Net, {"units.*.act": REG}, "sum", losses=(float(dist.get_world_size()), 1))
    model = wrap(seeded(Net))
    penalties = attach(model, {}, {"units.*.act": REG}, activity_reduction="sum")
    (loss_of(model, mine(data())) + penalties.activity()).backward()
    same_gradients(model, expected)


def hsdp_sum():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))

    def wrap(model):
        for unit in model.units:
            fully_shard(unit, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    data_parallel(wrap, "wrapper", "", "sum")


def a_sum_that_nothing_tells_how_to_scale():
    model = seeded(Net)
    penalties = attach(model, {}, {"units.*.act": REG}, activity_reduction="sum")
    model(mine(data()))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"'units\.0\.block\.act'.*activity\(scale"):
            penalties.activity()
    assert penalties.activity(scale=1.0).item() > 0.0
    means = attach(model, {}, {"units.*.act": REG})
    model(mine(data()))
    assert means.activity().item() > 0.0


def checkpointed_units():
    """Terms come before the outputs of their units, after them, and alone."""
    # Without "last" no term comes from the output of a unit.
    hooked = {f"units.*.{name}": REG for name in ("block", "block.up", "block.act", "block.down")}
    for inside, around in ((True, False), (False, True), (True, True), (False, False)):
        for order in ("loss first", "activity first", "activity alone"):
            alone_only = (0.0, 1.0) if order == "activity alone" else (1.0, 1.0)
            _, expected = alone(Net, hooked, "mean", alone_only)
            model = shard(seeded(lambda inside=inside, around=around: Net(inside, around)))
            penalties = attach(model, {}, hooked)
            loss = loss_of(model, mine(data()))
            activity = penalties.activity()
            if order == "activity alone":
                activity.backward()
            else:
                (loss + activity if order == "loss first" else activity + loss).backward()
            same_gradients(model, expected)


def tensor_parallel(rules, **plan):
    """Return a tensor-parallel block with activity penalties, attached, and one process's."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = parallelize_module(
        seeded(Block),
        mesh,
        plan or {"up": ColwiseParallel(), "down": RowwiseParallel()},
    )
    return model, attach(model, {}, rules), alone(Block, rules, "mean")


def column_and_row_parallel_layers():
    for rules in ({"up": REG}, {"down": REG}, {"up": REG, "down": REG}):
        model, penalties, (value, expected) = tensor_parallel(rules)
        loss = loss_of(model, data())
        activity = penalties.activity()
        close(activity.item(), value, 1e-5)
        (loss + activity).backward()
        same_gradients(model, expected)


def plain_parts_are_refused():
    for name in ("act", ""):
        model, penalties, _ = tensor_parallel({name: REG})
        with (
            penalties,
            pytest.raises(TypeError, match=f"'{name}' is part of a tensor-parallel"),
        ):
            model(data())


def tensors_that_stay_distributed():
    model, penalties, (value, expected) = tensor_parallel(
        {"act": REG},
        up=ColwiseParallel(use_local_output=False),
        down=RowwiseParallel(),
    )
    loss = loss_of(model, data())
    activity = penalties.activity()
    close(activity.item(), value, 1e-5)
    (loss + activity).backward()
    same_gradients(model, expected)


def tensor_parallel_sums_are_not_scaled():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    value, _ = alone(Block, {"up": REG}, "sum")
    model = parallelize_module(
        seeded(Block), mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()}
    )
    penalties = attach(model, {}, {"up": REG}, activity_reduction="sum")
    model(data())
    close(penalties.activity(scale=1.0).item(), value, 1e-5)


class Normed(nn.Module):
    """A norm before a layer."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 4)

    def forward(self, x):
        return self.up(self.norm(x))


def sequence_parallel():
    torch.manual_seed(1)
    x = torch.randn(3, BATCH, 6)  # sequences of the length BATCH
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rules = {"norm": REG, "up": REG}
    alone_penalties = attach(alone_model := seeded(Normed), {}, rules)
    alone_model(x)
    model = parallelize_module(
        seeded(Normed),
        mesh,
        {"norm": SequenceParallel(), "up": ColwiseParallel(input_layouts=Shard(1))},
    )
    penalties = attach(model, {}, rules)
    model(x.chunk(dist.get_world_size(), 1)[dist.get_rank()])
    close(penalties.activity().item(), alone_penalties.activity().item(), 1e-5)


def terms_that_no_loss_takes():
    model = seeded(Net)
    penalties = attach(model, {}, {"head": REG})
    model(data())
    with pytest.raises(RuntimeError, match="a pipeline stage without the loss"):
        penalties.accumulate()


def tensor_parallel_under_fsdp2():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    for reduction in ("mean", "sum"):
        rules = {"up": REG, "down": REG}
        value, expected = alone(Block, rules, reduction)
        model = parallelize_module(
            seeded(Block), mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()}
        )
        fully_shard(model, mesh=mesh["data"])
        penalties = attach(model, {}, rules, activity_reduction=reduction)
        x = data().chunk(2)[mesh["data"].get_local_rank()]
        loss = loss_of(model, x)
        activity = penalties.activity()
        close(average(activity.item()), value, 1e-5)
        (loss + activity).backward()
        same_gradients(model, expected)


WORLDS = {
    2: [
        ddp_mean,
        ddp_sum,
        ddp_sum_of_the_model_inside,
        fsdp2_mean,
        fsdp2_sum,
        fsdp2_sum_with_another_factor,
        a_sum_that_nothing_tells_how_to_scale,
        checkpointed_units,
        column_and_row_parallel_layers,
        plain_parts_are_refused,
        tensors_that_stay_distributed,
        tensor_parallel_sums_are_not_scaled,
        sequence_parallel,
        terms_that_no_loss_takes,
    ],
    4: [hsdp_sum, tensor_parallel_under_fsdp2],
}

if __name__ == "__main__":
    sharding_worker.main(WORLDS, *sys.argv[1:])
