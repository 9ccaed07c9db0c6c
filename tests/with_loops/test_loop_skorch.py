"""skorch: the penalty joins what ``get_loss`` returns while training."""

import loops
import pytest

torch = pytest.importorskip("torch")
skorch = pytest.importorskip("skorch")

pytestmark = pytest.mark.filterwarnings("default")


class PenalizedNet(skorch.NeuralNet):
    def initialize_module(self):
        super().initialize_module()
        self.penalties_ = loops.attached(self.module_)
        return self

    def get_loss(self, y_pred, y_true, X=None, training=False):  # noqa: N803
        loss = super().get_loss(y_pred, y_true, X=X, training=training)
        return loss + self.penalties_.value() if training else loss


class PlainNet(skorch.NeuralNet):
    way = "plain"

    def get_loss(self, y_pred, y_true, X=None, training=False):  # noqa: N803
        loss = super().get_loss(y_pred, y_true, X=X, training=training)
        return loss + loops.plain_penalty(self.module_, self.way) if training else loss


def accumulating(kind):
    """Gradient accumulation, as skorch's FAQ writes it, and autocast."""

    class Accumulating(kind):
        case = record = replay = None

        def initialize_optimizer(self, *args, **kwargs):
            super().initialize_optimizer(*args, **kwargs)
            self.record = loops.Record(self.module_, self.optimizer_, self.replay)
            return self

        def infer(self, x, **fit_params):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.case.autocast):
                return super().infer(x, **fit_params)

        def get_loss(self, y_pred, y_true, *args, **kwargs):
            return super().get_loss(y_pred.float(), y_true, *args, **kwargs) / loops.MICRO

        def train_step(self, batch, **fit_params):
            done = len(self.history[-1, "batches"]) - 1
            if done % loops.MICRO == 0:
                self.optimizer_.zero_grad()
            step = self.train_step_single(batch, **fit_params)
            if (done + 1) % loops.MICRO == 0:
                named = list(self.module_.named_parameters())
                self.notify("on_grad_computed", named_parameters=named)
                self.optimizer_.step()
            return step

    return Accumulating


class ClipValue(skorch.callbacks.Callback):
    def on_grad_computed(self, net, named_parameters, **_):
        torch.nn.utils.clip_grad_value_([p for _, p in named_parameters], loops.MAX_VALUE)


def run(case, way, replay=None):
    kind = accumulating(PenalizedNet if way == "fastreg" else PlainNet)
    kind.case, kind.way, kind.replay = case, way, replay
    optimizer = loops.optimizer_of(case, torch.nn.Linear(1, 1))
    settings = {name: optimizer.defaults[name] for name in ("lr", "weight_decay")}
    if case.optimizer == "sgd":
        settings["momentum"] = optimizer.defaults["momentum"]
    clips = {
        "norm": [("clip", skorch.callbacks.GradientNormClipping(loops.MAX_NORM))],
        "value": [("clip", ClipValue())],
    }
    net = kind(
        loops.Net,
        torch.nn.MSELoss,
        optimizer=type(optimizer),
        **{f"optimizer__{name}": value for name, value in settings.items()},
        batch_size=loops.ROWS,
        iterator_train__shuffle=False,
        max_epochs=1,
        train_split=None,
        callbacks=clips.get(case.clip, []),
        verbose=0,
    )
    net.fit(*loops.rows(way))
    return net.record


test_weights, test_gradients, test_drift = loops.tests_of(run)


def test_the_loop_as_it_comes():
    """One step for each batch, by a closure."""
    found = PenalizedNet(
        loops.Net,
        torch.nn.MSELoss,
        max_epochs=2,
        train_split=None,
        verbose=0,
        callbacks=[("clip", skorch.callbacks.GradientNormClipping(loops.MAX_NORM))],
    ).fit(*loops.rows("plain"))
    wanted = PlainNet(
        loops.Net,
        torch.nn.MSELoss,
        max_epochs=2,
        train_split=None,
        verbose=0,
        callbacks=[("clip", skorch.callbacks.GradientNormClipping(loops.MAX_NORM))],
    ).fit(*loops.rows("plain"))
    for p, q in zip(found.module_.parameters(), wanted.module_.parameters(), strict=True):
        assert loops.distance(p, q) <= 1e-6
