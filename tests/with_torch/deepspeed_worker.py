"""One of two processes of test_torch_engines.py: trains with DeepSpeed, and compares the weights.

``python deepspeed_worker.py STORE RANK STAGE``.  The expected weights are those of one process that
has the whole batch, and the penalty as a plain expression in the loss.
"""

import datetime
import sys
from pathlib import Path

import deepspeed
import pytest
import torch

from fastreg import regularizers
from fastreg.torch import attach

L1, L2 = 1e-2, 2e-2
RULE = regularizers.L1L2(L1, L2)


def network():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1))
    model[0].bias.requires_grad_(False)
    return model


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def sgd(model):
    return torch.optim.SGD(trained(model), lr=0.05, momentum=0.9)


def batches():
    torch.manual_seed(1)
    return torch.randn(10, 16, 6)


def expected_weights(clip):
    model = network()
    optimizer = sgd(model)
    for x in batches():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        for weight in trained(model):
            loss = loss + L1 * weight.abs().sum() + L2 * weight.square().sum()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return [weight.detach() for weight in model.parameters()]


def train(rank, stage, micro_batches, clip, way):
    model = network()
    config = {
        "train_micro_batch_size_per_gpu": 8 // micro_batches,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": clip,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=sgd(model), config=config, model_parameters=trained(model)
    )
    terms = []
    if way == "layers":  # the hooks come after those of the engine, which gather the parameters

        def take(layer, inputs):
            terms.extend(RULE(weight) for weight in layer.parameters() if weight.requires_grad)

        for layer in model:
            layer.register_forward_pre_hook(take)
    else:
        penalties = attach(engine, RULE)
    for x in batches():
        for inputs in x[8 * rank : 8 * rank + 8].chunk(micro_batches):
            penalty = penalties.value() if way == "loss" else 0.0
            loss = engine(inputs).square().mean() + penalty + sum(terms)
            terms.clear()
            engine.backward(loss)
            if way == "accumulate" and engine.is_gradient_accumulation_boundary():
                penalties.accumulate()
            engine.step()
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
        for weight, expected in zip(model.parameters(), expected_weights(clip), strict=True):
            assert (weight - expected).abs().max() <= 1e-6, (weight, expected)
    engine.destroy()


def main(store, rank, stage):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=Path(store).as_uri(),
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    deepspeed.init_distributed("gloo")
    for micro_batches, clip in ((1, 0.0), (2, 0.0), (2, 0.1)):
        train(rank, stage, micro_batches, clip, "layers" if stage == 3 else "loss")
    if stage == 0:
        train(rank, stage, 2, 0.1, "accumulate")
    elif stage == 3:
        with pytest.raises(TypeError, match="ZeRO-3"):
            train(rank, stage, 1, 0.0, "loss")
    else:
        with pytest.raises(RuntimeError, match="to the loss"):
            train(rank, stage, 1, 0.0, "accumulate")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
