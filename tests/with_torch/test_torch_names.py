"""Names of parameters that go, and further names of tied ones."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

import fastreg  # noqa: E402
from fastreg.regularizers import L1, L2  # noqa: E402
from fastreg.torch import attach, kernels  # noqa: E402

REG = L2(0.5)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


RENAMES = {
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight_norm": lambda layer: nn.utils.weight_norm(layer),
    "parametrized": lambda layer: nn.utils.parametrizations.weight_norm(layer),
}
NAMES = {
    "prune": r"now '0\.weight_orig'",
    "weight_norm": r"now '0\.weight_g', '0\.weight_v'",
    "parametrized": r"now '0\.parametrizations\.weight\.original0', '0\.param.*original1'",
}
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


def calls(penalties, optimizer):
    """Return what evaluates penalties, each by itself."""
    return {
        "accumulate": penalties.accumulate,
        "value": penalties.value,
        "report": penalties.report,
        "step": optimizer.step,
    }


@pytest.mark.parametrize("call", ["accumulate", "value", "report", "step"])
@pytest.mark.parametrize("rename", RENAMES)
def test_a_renamed_parameter_is_warned_of_once(rename, call):
    model = network()
    for rules in ({"*.weight": REG}, lambda name, p: REG if name.endswith("weight") else None):
        penalties = attach(model, rules)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if call == "step":
            penalties.before_step(optimizer, max_norm=None)
        calls(penalties, optimizer)[call]()
        RENAMES[rename](model[0])
        with pytest.warns(UserWarning, match=rf"'0\.weight' \({NAMES[rename]}, without") as seen:
            calls(penalties, optimizer)[call]()
        assert len(seen) == 1
        if call != "step":
            assert seen[0].filename == __file__
        calls(penalties, optimizer)[call]()  # once
        model = network()


def test_it_is_known_before_anything_is_written():
    model = network()
    penalties = attach(model, {"*.weight": REG})
    prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(UserWarning, match="no longer in the module"):  # warnings are errors here
        penalties.accumulate()
    assert model[2].weight.grad is None


@pytest.mark.parametrize("rename", RENAMES)
def test_rules_that_take_the_new_name_are_not_warned_of(rename):
    for rules in (kernels(REG), {"*weight*": REG}):
        model = network()
        penalties = attach(model, rules)
        RENAMES[rename](model[0])
        assert penalties.accumulate() > 0.0
        assert len([row for row in penalties.report().values() if row.rule]) >= 2


@pytest.mark.filterwarnings("ignore:parameters that had a penalty:UserWarning")
def test_a_name_that_comes_back_when_pruning_ends():
    model = network()
    by_name, by_kind = attach(model, {"*.weight": REG}), attach(model, kernels(REG))
    before = by_name.accumulate()
    prune.identity(model[0], "weight")
    assert by_name.accumulate() < before
    assert by_kind.accumulate() == before
    prune.remove(model[0], "weight")
    assert by_name.accumulate() == by_name.accumulate() == before
    assert [name for name, row in by_kind.report().items() if row.rule] == ["0.weight", "2.weight"]


def test_a_module_that_is_deleted_is_warned_of():
    model = network()
    model.extra = nn.Linear(2, 2)
    penalties = attach(model, {"*.weight": REG, "2.bias": REG})
    del model.extra
    with pytest.warns(UserWarning, match=r"no longer in the module: 'extra\.weight';"):
        penalties.accumulate()


def test_names_that_stay_are_not_warned_of():
    model = network()
    penalties = attach(model, {"*.weight": REG})
    model[2] = nn.Linear(7, 2)  # replaced
    model[0].weight.requires_grad_(False)  # frozen
    penalties.accumulate()
    model[0].weight.requires_grad_(True)
    model.append(nn.Linear(5, 7))  # one more
    penalties.accumulate()
    model[3].weight = model[0].weight  # tied: it counts under its first name
    penalties.accumulate()
    model[3] = nn.Sequential(model[3])  # moved
    penalties.accumulate()


def test_a_set_that_becomes_empty_is_an_error():
    for rules in ({"0.weight": REG, "2.weight": REG}, {"0.*": kernels(REG), "2.weight": REG}):
        model = network()
        penalties = attach(model, rules)
        model[0] = nn.Tanh()
        with pytest.raises(ValueError, match="matches no tensor"):
            penalties.accumulate()


# ------------------------------------------------------------------------------ tied parameters


class Language(nn.Module):
    """A head that is tied to an embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.middle = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize(
    "rules", [{"head.weight": None, "*.weight": REG}, {"head.*": REG, "middle.weight": L1(0.1)}]
)
def test_rules_for_further_names_say_which_name_counts(rules):
    with pytest.raises(
        ValueError,
        match=r"'head\.weight' to 'embedding\.weight'.*write 'embedding\.weight' instead",
    ):
        attach(Language(), rules)


def test_a_tie_to_a_parameter_without_a_rule_is_warned_of():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    penalties = attach(model, {"0.weight": None, "*.weight": REG})
    model[1].weight = model[0].weight
    with pytest.warns(UserWarning, match=r"'1\.weight' \(now '0\.weight', without a rule\)"):
        penalties.accumulate()


@pytest.mark.parametrize("of_module", [False, True])
def test_reports_of_ties_that_change(of_module):
    model = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(3)))
    weights = dict(model.named_parameters())
    penalties = attach(model, REG) if of_module else fastreg.attach(weights, REG)
    weights["2.weight"].data = weights["0.weight"].data
    assert penalties.report()["2.weight"].tied_to == "0.weight"
    weights["2.weight"].data = weights["1.weight"].data
    report = penalties.report()
    assert report["2.weight"].tied_to == "1.weight"
    assert report["2.weight"].rule is REG
    weights["2.weight"].data = torch.ones(3, 3)
    assert penalties.report()["2.weight"].tied_to is None
