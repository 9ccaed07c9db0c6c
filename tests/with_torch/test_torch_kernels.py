"""Rules for kernels: which parameters of which modules they take, and how they go with others."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrize, prune  # noqa: E402

import fastreg  # noqa: E402
from fastreg.regularizers import L1, L2  # noqa: E402
from fastreg.torch import attach, kernels  # noqa: E402

REG = L2(0.5)


def taken(model, rules=None):
    """Return the names of the parameters that have a rule."""
    report = attach(model, kernels(REG) if rules is None else rules).report()
    return {name for name, row in report.items() if row.rule is not None}


class Own(nn.Module):
    """A module that holds parameters of many kinds itself."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.ones(2, 3, 4))
        self.experts_bias = nn.Parameter(torch.ones(2, 4))
        self.weight = nn.Parameter(torch.ones(1, 4))
        self.row = nn.Parameter(torch.ones(1, 4))
        self.layer_scale = nn.Parameter(torch.ones(4, 2, 2))
        self.gamma = nn.Parameter(torch.ones(4, 2, 2))
        self.channels = nn.Parameter(torch.ones(4, 1, 1))
        self.pos_embed = nn.Parameter(torch.ones(1, 5, 4))
        self.cls_token = nn.Parameter(torch.ones(1, 2, 4))
        self.composed = nn.Parameter(torch.ones(5, 4))
        self.relative_position_bias_table = nn.Parameter(torch.ones(5, 4))
        self.rates = nn.Parameter(torch.ones(4, 4))
        self.rates._no_weight_decay = True
        self.parts = nn.ParameterList([torch.ones(3, 3), torch.ones(3)])
        self.biases = nn.ParameterList([torch.ones(3, 3)])


class SomeRMSNorm(nn.Module):
    """A norm of somebody else's, whose weight has two axes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))


class SomeEmbedding(nn.Module):
    """An embedding of somebody else's."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Linear(3, 2), {"weight"}),
        (nn.Linear(1, 2), {"weight"}),
        (nn.Bilinear(3, 4, 2), {"weight"}),
        (nn.Conv1d(1, 2, 1), {"weight"}),
        (nn.ConvTranspose3d(1, 2, 3), {"weight"}),
        (nn.RNN(3, 2), {"weight_ih_l0", "weight_hh_l0"}),
        (
            nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2),
            {
                f"weight_{part}_l{layer}{way}"
                for part in ("ih", "hh", "hr")
                for layer in (0, 1)
                for way in ("", "_reverse")
            },
        ),
        (nn.GRUCell(3, 1), {"weight_ih", "weight_hh"}),
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), {"in_proj_weight", "out_proj.weight"}),
        (
            nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
            {"q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"},
        ),
        (
            nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LayerNorm((2, 2)), nn.PReLU(4)),
            {"0.weight"},
        ),
        (nn.Sequential(SomeRMSNorm(), nn.Embedding(5, 4), nn.Linear(4, 4)), {"2.weight"}),
        (Own(), {"experts", "weight", "composed", "parts.0"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_is_a_kernel(module, expected):
    assert taken(module) == expected


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted_modules():
    assert taken(torch.jit.script(nn.Sequential(nn.Linear(1, 2), nn.LayerNorm((2, 2))))) == {
        "0.weight"
    }


def test_the_penalty_is_that_of_kernels_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.LSTM(7, 3))
    kept = (model[0].weight, model[2].weight_ih_l0, model[2].weight_hh_l0)
    expected = fastreg.attach([one.detach() for one in kept], REG).value()
    assert attach(model, kernels(REG)).accumulate() == expected
    assert model[1].weight.grad is None


def test_embeddings_have_it_when_asked():
    model = nn.Sequential(nn.Embedding(5, 4), SomeEmbedding(), nn.Linear(4, 4))
    assert taken(model) == {"2.weight"}
    assert taken(model, kernels(REG, embeddings=True)) == {"0.weight", "1.weight", "2.weight"}
    assert taken(Own(), kernels(REG, embeddings=True)) >= {"pos_embed", "cls_token", "experts"}


@pytest.mark.parametrize("head_first", [False, True])
def test_a_head_that_is_tied_to_an_embedding_is_an_embedding(head_first):
    embedding, head, other = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False), nn.Linear(4, 4)
    head.weight = embedding.weight
    model = nn.Sequential(*([head, embedding] if head_first else [embedding, head]), other)
    assert taken(model) == {"2.weight"}
    assert taken(model, kernels(REG, embeddings=True)) == {"0.weight", "2.weight"}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("rename", "expected"),
    [
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "weight_orig"),
        (lambda layer: nn.utils.weight_norm(layer), "weight_v"),
        (lambda layer: nn.utils.spectral_norm(layer), "weight_orig"),
        (
            lambda layer: nn.utils.parametrizations.weight_norm(layer),
            "parametrizations.weight.original1",
        ),
        (
            lambda layer: nn.utils.parametrizations.spectral_norm(layer),
            "parametrizations.weight.original",
        ),
        (
            lambda layer: parametrize.register_parametrization(layer, "bias", nn.Tanh()),
            "weight",
        ),
    ],
)
@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 2), lambda: nn.Linear(1, 2)])
def test_kernels_that_were_renamed(make, rename, expected):
    layer = make()
    rename(layer)
    assert taken(nn.Sequential(layer)) == {f"0.{expected}"}


def test_parametrizations_of_recurrent_layers_and_embeddings():
    model = nn.Sequential(nn.LSTM(3, 2), nn.Embedding(3, 2))
    nn.utils.parametrizations.weight_norm(model[0], "weight_hh_l0")
    nn.utils.parametrizations.weight_norm(model[1])
    assert taken(model) == {"0.weight_ih_l0", "0.parametrizations.weight_hh_l0.original1"}


def test_lazy_kernels_have_the_rule_once_they_are_there():
    model = nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())
    penalties = attach(model, kernels(REG))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert repr(penalties) == "<Penalties on 0 of 4 parameters>"
    assert penalties.accumulate() == 0.0
    model(torch.ones(2, 3))
    assert repr(penalties) == "<Penalties on 1 of 4 parameters: '0.weight'>"
    assert penalties.accumulate() == fastreg.attach([model[0].weight.detach()], REG).value()
    optimizer.step()


def test_in_a_mapping_it_leaves_what_is_no_kernel_to_later_globs():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    rules = {"2.*": kernels(L1(1.0)), "*": kernels(REG), "*.bias": L1(2.0)}
    penalties = attach(model, rules)
    found = {name: row.rule for name, row in penalties.report().items()}
    assert found == {
        "0.weight": REG,
        "0.bias": L1(2.0),
        "1.weight": None,
        "1.bias": L1(2.0),
        "2.weight": L1(1.0),
        "2.bias": L1(2.0),
    }
    assert penalties.rules == {"2.*": L1(1.0), "*": REG, "*.bias": L1(2.0)}
    assert taken(model, {"2.*": None, "*": kernels(REG)}) == {"0.weight"}


def test_strengths_are_those_of_the_regularizer():
    reg = L2(1.0)
    penalties = attach(nn.Linear(3, 2), kernels(reg))
    before = penalties.accumulate()
    penalties.rules["*"].l2 = 2.0
    assert penalties.accumulate() == 2 * before


def test_rules_for_kernels_that_match_none():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    with pytest.raises(ValueError, match=r"rules\['1\.\*'\].* none: '1\.weight', '1\.bias'"):
        attach(model, {"1.*": kernels(REG), "*": "l1"})
    with pytest.raises(ValueError, match=r"rules\['\*'\].*'weight', 'bias'.*no weights that mult"):
        attach(nn.LayerNorm(2), kernels(REG))
    with pytest.raises(ValueError, match=r"rules\['0\.weight'\] never wins"):
        attach(model, {"*": kernels(REG), "0.weight": "l1"})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"regularizer": None}, TypeError, "regularizer must stand for a regularizer, not None"),
        ({"regularizer": 3.0}, TypeError, "regularizer: identifier"),
        ({"regularizer": "l3"}, ValueError, "regularizer: .*'l3'"),
        ({"regularizer": "l2", "embeddings": 1}, TypeError, "embeddings must be True or False"),
    ],
)
def test_arguments_that_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        kernels(**arguments)


def test_copies_and_pickles():
    penalties = attach(nn.Linear(3, 2), {"*": kernels(REG)})
    for other in (copy.deepcopy(penalties), pickle.loads(pickle.dumps(penalties))):
        assert repr(other) == repr(penalties)
    assert repr(kernels("l2", embeddings=True)) == "kernels(L2(l2=0.01), embeddings=True)"


def test_callables_are_rules_for_kernels():
    layer = nn.Linear(3, 2)
    value = attach(layer, kernels(lambda w: w.square().sum())).value().item()
    assert value == pytest.approx(layer.weight.square().sum().item())
