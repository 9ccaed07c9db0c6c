"""Activity penalties: what counts of what a module gives, and what it is divided by."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402

from fastreg.regularizers import L1, L2  # noqa: E402
from fastreg.torch import attach  # noqa: E402

N, T, C = 3, 5, 4
REG = L2(0.5)


def penalty_of(module, *inputs, regularizer=REG, **options):
    """Return what the module gives for the inputs, and its activity penalty."""
    penalties = attach(module, {}, {"": regularizer}, **options)
    with penalties:
        given = module(*inputs)
        return given, penalties.activity().item()


def expected(tensor, batch_size):
    return pytest.approx(0.5 * tensor.detach().double().square().sum().item() / batch_size)


RECURRENT = {
    "RNN": nn.RNN,
    "GRU": nn.GRU,
    "LSTM": nn.LSTM,
    "projected LSTM": lambda *sizes, **options: nn.LSTM(*sizes, proj_size=2, **options),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_modules(kind, batch_first):
    module = RECURRENT[kind](C, 6, num_layers=2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(N, T, C) if batch_first else torch.randn(T, N, C)
    (output, _), penalty = penalty_of(module, x)
    assert penalty == expected(output, N)
    (output, _), penalty = penalty_of(module, x, activity_reduction="sum")
    assert penalty == expected(output, 1)
    (output, _), penalty = penalty_of(module, torch.randn(T, C))  # one sequence
    assert penalty == expected(output, 1)


def test_packed_sequences():
    module = nn.GRU(C, 6)
    packed = pack_padded_sequence(torch.randn(T, N, C), [5, 3, 2])
    (output, _), penalty = penalty_of(module, packed)
    assert penalty == expected(output.data, N)


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_cells(kind):
    for x, batch_size in ((torch.randn(N, C), N), (torch.randn(C), 1)):
        given, penalty = penalty_of(kind(C, 6), x)
        assert penalty == expected(given[0] if kind is nn.LSTMCell else given, batch_size)


@pytest.mark.parametrize("batch_first", [False, True])
def test_attention(batch_first):
    module = nn.MultiheadAttention(C, 2, batch_first=batch_first)
    x = torch.randn(N, T, C) if batch_first else torch.randn(T, N, C)
    (output, weights), penalty = penalty_of(module, x, x, x)
    assert weights is not None
    assert penalty == expected(output, N)
    x = torch.randn(T, C)
    (output, _), penalty = penalty_of(module, x, x, x)
    assert penalty == expected(output, 1)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.parametrize("batch_first", [False, True])
def test_transformers(batch_first):
    layer = nn.TransformerEncoderLayer(C, 2, 8, batch_first=batch_first)
    x = torch.randn(N, T, C) if batch_first else torch.randn(T, N, C)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    decoder = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(C, 2, 8, batch_first=batch_first), num_layers=1
    )
    for module, inputs in (
        (layer, (x,)),
        (encoder, (x,)),
        (decoder.layers[0], (x, x)),
        (decoder, (x, x)),
        (nn.Transformer(C, 2, 1, 1, 8, batch_first=batch_first), (x, x)),
    ):
        output, penalty = penalty_of(module, *inputs)
        assert penalty == expected(output, N), type(module)


@pytest.mark.parametrize(
    ("module", "sample"),
    [
        (nn.Conv1d(2, 3, 1), (2, 6)),
        (nn.Conv2d(2, 3, 1), (2, 6, 6)),
        (nn.ConvTranspose3d(2, 3, 1), (2, 4, 4, 4)),
        (nn.AvgPool2d(2), (2, 6, 6)),
        (nn.AdaptiveMaxPool1d(2), (2, 6)),
        (nn.InstanceNorm2d(2), (2, 6, 6)),
        (nn.Linear(6, 3), (6,)),
        (nn.LayerNorm((2, 6)), (2, 6)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_samples_without_a_batch_axis(module, sample):
    for x, batch_size in ((torch.randn(N, *sample), N), (torch.randn(sample), 1)):
        x.requires_grad_()
        output, penalty = penalty_of(module, x)
        assert penalty == expected(output, batch_size)


def test_the_gradient_is_that_of_the_penalty():
    module = nn.LSTM(C, 6)
    x = torch.randn(T, N, C)
    penalties = attach(module, {}, {"": REG})
    module(x)
    penalties.activity().backward()
    found = module.weight_ih_l0.grad.clone()
    module.zero_grad()
    output, _ = module(x)
    (0.5 * output.square().sum() / N).backward()
    torch.testing.assert_close(found, module.weight_ih_l0.grad)


class Gives(nn.Module):
    """Return what it was made with, times its input."""

    def __init__(self, make, **attributes):
        super().__init__()
        self.make = make
        vars(self).update(attributes)

    def forward(self, x):
        return self.make(x)


def leaf(*shape):
    return torch.ones(shape, requires_grad=True)


def test_states_count_when_they_are_asked_for():
    module = nn.LSTM(C, 6, num_layers=2)
    x = torch.randn(T, N, C)
    (output, (h, c)), penalty = penalty_of(module, x, activity_batch_axis={"": (1, (1, None))})
    assert penalty == pytest.approx(0.5 * (output.square().sum() / N + h.square().sum() / N).item())
    _, penalty = penalty_of(module, x, activity_batch_axis={"": (None, (None, 1))})
    assert penalty == expected(c, N)
    attention = nn.MultiheadAttention(C, 2)
    (_, weights), penalty = penalty_of(attention, x, x, x, activity_batch_axis={"": (None, 0)})
    assert penalty == expected(weights, N)


def test_parts_of_tuples_and_dicts():
    module = Gives(lambda x: {"a": x, "b": [x.sum(), (2 * x,)], "c": "text"})
    x = leaf(4, 3)
    axes = {"": {"a": 0, "b": (0, (1,))}}
    for reduction, wanted in (("mean", 12 / 4 + 12 + 24 / 3), ("sum", 12 + 12 + 24)):
        _, penalty = penalty_of(
            module, x, regularizer=L1(1.0), activity_reduction=reduction, activity_batch_axis=axes
        )
        assert penalty == pytest.approx(wanted)
    _, penalty = penalty_of(module, x, regularizer=L1(1.0), activity_batch_axis={"": {"a": 1}})
    assert penalty == pytest.approx(12 / 3)


def test_the_batch_axis_of_other_modules():
    x = leaf(T, N, C)
    for options, module, batch_size in (
        ({}, Gives(lambda x: x), T),
        ({"activity_batch_axis": 1}, Gives(lambda x: x), N),
        ({"activity_batch_axis": -2}, nn.Tanh(), N),
        ({}, Gives(lambda x: x, batch_first=False), N),
        ({}, Gives(lambda x: x, batch_first=True), T),
        ({"activity_batch_axis": {"*": 2}}, Gives(lambda x: x, batch_first=True), C),
        ({"activity_batch_axis": 0}, nn.GRU(C, 2), N),  # it says so itself
    ):
        output, penalty = penalty_of(module, x, **options)
        output = output[0] if isinstance(output, tuple) else output
        assert penalty == expected(output, batch_size), options


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "make", [lambda x: (x, x), lambda x: {"a": x}, lambda x: [x], lambda x: None]
)
def test_what_counts_is_not_guessed(make, reduction):
    module = nn.Sequential(Gives(make))
    penalties = attach(module, {}, {"0": REG}, activity_reduction=reduction)
    with pytest.raises(TypeError, match=r"module '0' .* gives .*activity_batch_axis=\{"):
        module(leaf(2, 3))
    with torch.no_grad():
        module(leaf(2, 3))  # nothing is collected
    penalties.accumulate()


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        ({"0": 2}, ValueError, r"shape \(2, 3\), which has no axis 2"),
        ({"0": (0, 0)}, TypeError, r"module '0' is a torch\.Tensor, which does not fit \(0, 0\)"),
        ({"0": {"a": 0}}, TypeError, "does not fit"),
    ],
)
def test_batch_axes_that_do_not_fit(axes, error, message):
    model = nn.Sequential(nn.Identity())
    attach_it = attach(model, {}, {"0": REG}, activity_batch_axis=axes)
    with attach_it, pytest.raises(error, match=message):
        model(leaf(2, 3))


def test_parts_that_are_not_there():
    attention = nn.MultiheadAttention(C, 2)
    x = torch.randn(T, N, C)
    with (
        attach(attention, {}, {"": REG}, activity_batch_axis={"": (1, 0)}),
        pytest.raises(TypeError, match=r"module ''\[1\] is None"),
    ):
        attention(x, x, x, need_weights=False)


def test_a_batch_axis_that_cannot_be_known():
    module = Gives(lambda x: x, batch_first=False)
    with pytest.raises(ValueError, match=r"shape \(3, 4\), whose batch axis cannot be known"):
        penalty_of(module, leaf(N, C))


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        ("first", TypeError, "activity_batch_axis must be an axis"),
        (True, TypeError, "activity_batch_axis must be an axis"),
        ({"0": "first"}, TypeError, r"activity_batch_axis\['0'\] must be the batch axis"),
        ({"0": (0, [0.5])}, TypeError, r"activity_batch_axis\['0'\]\[1\]\[0\] must be"),
        ({"1": 0}, ValueError, r"activity_batch_axis\['1'\] matches no module with a regularizer"),
    ],
)
def test_batch_axes_that_are_refused(axes, error, message):
    model = nn.Sequential(nn.Identity(), nn.Identity())
    with pytest.raises(error, match=message):
        attach(model, {}, {"0": REG}, activity_batch_axis=axes)
    assert not model[0]._forward_hooks


def test_terms_that_are_forgotten_beside_a_penalty_in_the_loss():
    model = nn.Sequential(nn.Linear(C, 2), nn.Tanh())
    penalties = attach(model, {"*weight": REG}, {"1": REG})
    x = torch.randn(N, C)
    (model(x).sum() + penalties.value() + penalties.value() + penalties.activity()).backward()
    (model(x).sum() + penalties.value()).backward()
    with pytest.raises(RuntimeError, match=r"1 activity penalties .* in no loss"):
        (model(x).sum() + penalties.value()).backward()
    (model(x).sum() + penalties.value() + penalties.activity()).backward()


@pytest.mark.parametrize("call", ["value", "accumulate", "activity"])
def test_modules_that_are_replaced_are_warned_of_once(call):
    model = nn.Sequential(nn.Linear(C, 2), nn.Tanh(), nn.Tanh())
    penalties = attach(model, {"*weight": REG}, {"1": REG, "2": REG})
    getattr(penalties, call)()
    kept, model[1] = model[1], nn.Sigmoid()  # replaced while somebody else holds it
    del model[2]
    with pytest.warns(UserWarning, match=r"activity regularizer are no longer .*'1', '2'") as seen:
        getattr(penalties, call)()
    assert [len(seen), seen[0].filename] == [1, __file__]
    getattr(penalties, call)()
    assert kept is not model[1]


def test_modules_that_are_wrapped_are_still_there():
    model = nn.Sequential(nn.Tanh())
    penalties = attach(model, {}, {"0": REG})
    model[0] = nn.Sequential(model[0])
    output = model(leaf(N, C))
    for _ in range(2):
        assert penalties.activity().item() == expected(output, N)
        output = model(leaf(N, C))
    penalties.close()
    model[0] = nn.Tanh()
    assert penalties.activity().item() == 0.0


def test_a_scale():
    model = nn.Sequential(nn.Tanh())
    x = leaf(N, C)
    penalties = attach(model, {}, {"0": REG})
    output = model(x)
    with pytest.raises(TypeError, match="scale"):
        penalties.activity(scale="2")
    assert penalties.activity(scale=2.0).item() == expected(output, N / 2)
