"""Lightning: the penalty joins what ``training_step`` returns."""

import copy
import pickle

import loops
import pytest

torch = pytest.importorskip("torch")
lightning = pytest.importorskip("lightning")

pytestmark = pytest.mark.filterwarnings("default")


class Module(lightning.LightningModule):
    def __init__(self, case, way):
        super().__init__()
        self.net = loops.Net()
        self.term = None if way == "fastreg" else loops.term_of(self.net, way)
        self.penalties = loops.attached(self)
        self.optimizer = loops.optimizer_of(case, self.net)

    def training_step(self, batch, _):
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.net(x), y)
        return loss + (self.penalties.value() if self.term is None else self.term())

    def configure_optimizers(self):
        return self.optimizer


def run(case, way, replay=None):
    module = Module(case, way)
    record = loops.Record(module.net, module.optimizer, replay)
    clips = {"norm": loops.MAX_NORM, "value": loops.MAX_VALUE}
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=loops.MICRO,
        gradient_clip_val=clips.get(case.clip),
        gradient_clip_algorithm=case.clip if case.clip in clips else None,
        precision="bf16-mixed" if case.autocast else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader(loops.batches(way), batch_size=None)
    trainer.fit(module, loader)
    return record


test_weights, test_gradients, test_drift = loops.tests_of(run)


def test_a_wrapped_optimizer_is_unwrapped():
    module = Module(loops.Case("none"), "plain")
    wrapped = lightning.pytorch.core.optimizer.LightningOptimizer(module.optimizer)
    handle = module.penalties.before_step(wrapped, max_norm=None)
    assert module.optimizer._optimizer_step_pre_hooks
    handle.remove()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_module_is_copied_with_its_penalties(copied):
    module = Module(loops.Case("none"), "fastreg")
    other = copied(module)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
        assert module.penalties.value() == 0.0
        assert other.penalties.value() > 0.0
    other.penalties.value().backward()
    assert other.net.unused.weight.grad is not None
    assert module.net.unused.weight.grad is None
