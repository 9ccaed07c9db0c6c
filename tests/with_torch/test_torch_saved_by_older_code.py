"""What users of PyTorch have on disk loads: see ``tests/fixtures/make_fixtures.py``."""

import pytest
import torch
from interpreter import runs
from saved_pickles import FIXTURES, PROTOCOLS, unpickled

import fastreg.torch
from fastreg import regularizers

HALF = regularizers.L1(0.5)


@pytest.fixture(params=PROTOCOLS)
def pickled(request):
    def load(name):
        return unpickled("torch_pickles.json", name, request.param)

    return load


def test_kernels(pickled):
    rule = pickled("kernels")
    assert repr(rule) == "kernels(L1(l1=0.5), embeddings=True)"
    penalties = fastreg.torch.attach(
        torch.nn.Embedding.from_pretrained(torch.ones(2, 2), freeze=False), rule
    )
    assert repr(penalties) == "<Penalties on 1 of 1 parameters: 'weight'>"


def test_penalties_on_a_module(pickled):
    penalties = pickled("attach")
    assert type(penalties) is fastreg.torch.Penalties
    assert repr(penalties) == "<Penalties on 1 of 2 parameters: 'weight'>"
    with torch.no_grad():
        assert penalties.value() == 1.5
    module = penalties._arguments[0]
    assert module(torch.tensor([[2.0, 1.0]])).tolist() == [[3.0]]
    activity = penalties.activity()
    assert activity.item() == 2.25
    (activity + penalties.value()).backward()
    assert module.weight.grad.tolist() == [[3.0 + 0.5, 1.5 - 0.5]]


def test_module_whose_hooks_were_ours(pickled):
    module = pickled("module")
    assert module(torch.tensor([[2.0, 1.0]])).tolist() == [[3.0]]
    penalties = fastreg.torch.attach(module, HALF)
    assert penalties.accumulate() == 3.0
    assert module.weight.grad.tolist() == [[0.5, -0.5]]


def test_optimizer_whose_hooks_were_ours(pickled):
    optimizer = pickled("optimizer")
    weight, bias = optimizer.param_groups[0]["params"]
    weight.grad, bias.grad = torch.ones_like(weight), torch.ones_like(bias)
    optimizer.step()
    assert weight.tolist() == [[0.5, -2.5]]  # a copy has no penalties
    assert bias.tolist() == [2.5]


def test_handle(pickled):
    handle = pickled("StepHandle")
    assert type(handle) is fastreg.torch.StepHandle
    handle.remove()


def test_exported_program():
    # In a process of its own: it needs operators, which nothing but fastreg.torch is to register.
    printed = runs(f"""
        import warnings
        import torch
        import fastreg.torch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says of its own modules
            program = torch.export.load({str(FIXTURES / "torch_program.pt2")!r}).module()
        print(program(torch.tensor([1.0, -2.0])).item())
    """)
    assert printed == "2.75\n"


def test_penalties_on_tensors(pickled):
    penalties = pickled("attach tensors")
    assert type(penalties) is fastreg.Penalties
    assert penalties.value() == 0.5
    grads = {"w": torch.zeros(2)}
    assert penalties.accumulate(grads) == 0.5
    assert grads["w"].tolist() == [0.5, 0.5]
