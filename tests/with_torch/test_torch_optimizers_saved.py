"""state_dict of fastreg.torch's optimizers: torch's own load it, and theirs are loaded."""

import copy
import io

import pytest
import torch
from test_torch_optimizers import (
    ALGORITHMS,
    largest_difference,
    network,
    one_parameter,
    ours,
    require_untouched,
    snapshot,
    theirs,
    train,
)

import fastreg.torch
from fastreg.regularizers import L1

RULES = {"0.*": None, "2.weight": (L1(1e-3), "gradient")}


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_both_ways_in_the_middle_of_training(algorithm):
    options = {"lr": 0.05, **ALGORITHMS[algorithm]}
    model = network()
    other = copy.deepcopy(model)
    only = copy.deepcopy(model)
    mine = ours(algorithm)(model, **options)
    their = theirs(algorithm)(other.parameters(), **options)
    train(model, mine, range(3))
    train(other, their, range(3))
    saved = through_a_file(mine.state_dict())
    mine.load_state_dict(through_a_file(their.state_dict()))
    their.load_state_dict(saved)
    train(model, mine, range(3, 6))
    train(other, their, range(3, 6))
    train(only, theirs(algorithm)(only.parameters(), **options), range(6))
    assert largest_difference(model, only) < 2e-6
    assert largest_difference(other, only) < 2e-6
    assert mine.steps == 6


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_is_what_torch_has(algorithm):
    options = {"lr": 0.05, **ALGORITHMS[algorithm]}
    model = network()
    other = copy.deepcopy(model)
    mine = ours(algorithm)(model, rules=RULES, **options)
    their = theirs(algorithm)(other.named_parameters(), **options)
    train(model, mine, range(3))
    train(other, their, range(3))
    one, two = mine.state_dict(), their.state_dict()
    assert one["state"].keys() == two["state"].keys()
    for key, kept in two["state"].items():
        assert [*one["state"][key]] == [*kept]
        for name, x in kept.items():
            found = one["state"][key][name]
            assert (found.dtype, found.shape, found.stride()) == (x.dtype, x.shape, x.stride())
    (group,), (theirs_group,) = one["param_groups"], two["param_groups"]
    assert group.pop("fastreg_steps") == 3
    assert group == theirs_group
    if "AdamW" in algorithm:
        assert torch.equal(one["state"][0]["step"], torch.tensor(3.0))
        assert mine.state[model[0].weight]["step"] == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_moments_stay_in_float32(dtype):
    model = network(dtype)
    optimizer = fastreg.torch.AdamW(model, amsgrad=True)
    train(model, optimizer, range(3))
    saved = through_a_file(optimizer.state_dict())
    again = fastreg.torch.AdamW(copy.deepcopy(model), amsgrad=True)
    again.load_state_dict(saved)
    for one, other in zip(optimizer.state.values(), again.state.values(), strict=True):
        assert one["step"] == other["step"] == 3
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            assert other[name].dtype == torch.float32
            assert torch.equal(one[name], other[name])
    other = network(dtype)
    their = torch.optim.AdamW(other.parameters())
    train(other, their, range(2))
    again.load_state_dict({**through_a_file(their.state_dict())})
    assert {x["exp_avg"].dtype for x in again.state.values()} == {torch.float32}


def test_options_of_ours_are_not_lost():
    model = network()
    optimizer = fastreg.torch.SGD(model, lr=0.1, momentum=0.5, rules=RULES, max_norm=1.0)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5)
    their = torch.optim.SGD([{"params": model.parameters(), "lr": 0.2}], momentum=0.9, fused=True)
    their.param_groups[0]["param_names"] = ["a", "b", "c", "d"]
    optimizer.load_state_dict(their.state_dict())
    assert optimizer.param_groups[0]["initial_lr"] == 0.1
    assert (optimizer.param_groups[0]["lr"], optimizer.max_norm) == (0.2, 1.0)
    train(model, optimizer, range(2))
    assert optimizer.last.size == 21
    assert optimizer.last.norm > 0.0
    model[2].weight.grad[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"the parameter '2\.weight'"):
        optimizer.step()


def test_counts_of_steps():
    """Of a dict of torch's, the number of steps is that of its tensors; of ours it is there."""
    model = network()
    strengths = []
    optimizer = fastreg.torch.SGD(
        model, lr=0.1, rules=RULES, strength=lambda step: strengths.append(step) or 1.0
    )
    train(model, optimizer, range(3))
    again = fastreg.torch.SGD(
        model, lr=0.1, rules=RULES, strength=lambda step: strengths.append(step) or 1.0
    )
    again.load_state_dict(optimizer.state_dict())
    train(model, again, range(1))
    assert strengths == [0, 1, 2, 3]
    their = torch.optim.AdamW(model.parameters())
    train(model, their, range(4))
    adam = fastreg.torch.AdamW(model)
    adam.load_state_dict(their.state_dict())
    assert adam.steps == 4


def test_other_layouts_are_brought_to_that_of_the_parameter():
    model = torch.nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer = fastreg.torch.AdamW(model)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    wanted = saved["state"][0]["exp_avg"].clone()
    saved["state"][0]["exp_avg"] = torch.stack([wanted, wanted], -1)[..., 0].contiguous()
    saved["state"][0]["exp_avg_sq"] = torch.ones(1).expand(4, 3, 2, 2)
    optimizer.load_state_dict(saved)
    kept = optimizer.state[model.weight]
    assert kept["exp_avg"].stride() == model.weight.stride()
    assert torch.equal(kept["exp_avg"], wanted)
    assert kept["exp_avg_sq"].is_contiguous(memory_format=torch.channels_last)
    # What is put there by hand is stepped where it lies.
    before = copy.deepcopy(model.weight.detach())
    kept["exp_avg"] = kept["exp_avg"].contiguous()
    optimizer.step()
    assert not torch.equal(model.weight, before)
    assert kept["exp_avg"].is_contiguous()


@pytest.mark.parametrize("algorithm", ["SGD with momentum", "AdamW"])
def test_what_is_refused_changes_nothing(algorithm):
    model = network()
    optimizer = ours(algorithm)(model, lr=0.1, rules=RULES, **ALGORITHMS[algorithm])
    train(model, optimizer, range(2))
    good = copy.deepcopy(optimizer.state_dict())
    moment = [*good["state"][2]][-1]

    def with_group(**options):
        return {**good, "param_groups": [{**good["param_groups"][0], **options}]}

    def with_state(**kept):
        return {**good, "state": {**good["state"], 2: {**good["state"][2], **kept}}}

    before = snapshot(optimizer)
    cases = [
        (with_group(lr=-1.0), r"^param_groups\[0\]\['lr'\] must be a finite number >= 0"),
        (with_group(differentiable=True), r"\['differentiable'\] must be False"),
        (with_group(params=[0, 1]), "doesn't match the size of optimizer's group"),
        (with_state(**{moment: torch.ones(2)}), rf"^the {moment} of the parameter '2\.weight' has"),
        (with_state(step=1.5), r"^the step of the parameter '2\.weight' must be a number of steps"),
    ]
    for state_dict, message in cases:
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(state_dict)
        require_untouched(optimizer, before)
    optimizer.load_state_dict(with_group(capturable=True, fused=True))
    assert optimizer.param_groups[0]["fused"] is True
    train(model, optimizer, range(2, 3))


def test_a_moment_that_is_missing():
    parameter = one_parameter([1.0], [1.0])
    optimizer = fastreg.torch.AdamW([parameter])
    optimizer.step()
    optimizer.param_groups[0]["amsgrad"] = True  # begun later: it starts at 0
    optimizer.step()
    assert "max_exp_avg_sq" in optimizer.state[parameter]
    del optimizer.state[parameter]["exp_avg"]
    with pytest.raises(
        ValueError, match=r"^the exp_avg of param_groups\[0\]\['params'\]\[0\] is m"
    ):
        optimizer.step()


def test_hooks_of_saving_and_loading():
    model = network()
    optimizer = fastreg.torch.AdamW(model)
    train(model, optimizer, range(1))
    calls = []
    optimizer.register_state_dict_post_hook(
        lambda _, found: calls.append(type(found["state"][0]["step"]))
    )
    optimizer.register_load_state_dict_pre_hook(
        lambda _, found: calls.append(type(found["state"][0]["exp_avg"]))
    )
    optimizer.register_load_state_dict_post_hook(lambda one: calls.append(one.steps))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == [torch.Tensor, torch.Tensor, 1]
