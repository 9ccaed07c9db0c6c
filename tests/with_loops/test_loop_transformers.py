"""transformers: a backward pass of its own for the penalty, before the Trainer clips."""

import loops
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

pytestmark = pytest.mark.filterwarnings("default")


class Model(torch.nn.Module):
    """With the loss that Trainer wants, and the penalty in it unless that is left to fastreg."""

    def __init__(self, way):
        super().__init__()
        self.net = loops.Net()
        self.way = way

    def forward(self, x, labels):
        y = self.net(x)
        loss = torch.nn.functional.mse_loss(y, labels)
        if self.way != "fastreg":
            loss = loss + loops.plain_penalty(self.net, self.way)
        return {"loss": loss, "logits": y}


class PenalizedTrainer(transformers.Trainer):
    penalties = None

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        share = 1.0 / self.current_gradient_accumulation_steps
        self.accelerator.backward(self.penalties.value(scale=share))
        return loss


class ClipValue(transformers.TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        torch.nn.utils.clip_grad_value_(model.parameters(), loops.MAX_VALUE)


def fit(case, way, replay, folder, model, dataset, collator):
    optimizer = loops.optimizer_of(case, model)
    record = loops.Record(model, optimizer, replay)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=loops.STEPS,
        per_device_train_batch_size=loops.ROWS,
        gradient_accumulation_steps=loops.MICRO,
        max_grad_norm=loops.MAX_NORM if case.clip == "norm" else 0.0,
        bf16=case.autocast,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    kind = PenalizedTrainer if way == "fastreg" else transformers.Trainer
    trainer = kind(
        model,
        arguments,
        train_dataset=dataset,
        data_collator=collator,
        optimizers=(optimizer, None),
        callbacks=[ClipValue] if case.clip == "value" else None,
    )
    if way == "fastreg":
        trainer.penalties = loops.attached(model)
    trainer.train()
    return record


@pytest.fixture
def run(tmp_path):
    def once(case, way, replay=None):
        x, y = loops.rows(way)
        batches = list(zip(x.split(loops.ROWS), y.split(loops.ROWS), strict=True))

        def collated(numbers):  # one number is one batch
            return dict(zip(("x", "labels"), batches[numbers[0] // loops.ROWS], strict=True))

        transformers.set_seed(0)
        model = Model(way)
        return fit(case, way, replay, tmp_path, model, range(len(x)), collated)

    return once


@pytest.mark.parametrize("clip", loops.CLIPS)
def test_weights_after_20_steps(run, clip):
    loops.check_weights(run, loops.Case(clip))


@pytest.mark.parametrize("clip", loops.CLIPS)
def test_gradients_at_each_step(run, clip):
    loops.check_gradients(run, loops.Case(clip, "adamw", autocast=True))


def test_drift_is_rounding(run):
    loops.check_drift(run, loops.Case("norm", "adamw", autocast=True))


class PlainGPT2(transformers.GPT2LMHeadModel):
    """Its loss is a mean over the tokens of all micro-batches: each has a share of the penalty."""

    def forward(self, *args, **kwargs):
        found = super().forward(*args, **kwargs)
        penalty = sum(
            loops.L1_STRENGTH * p.abs().sum() + loops.L2_STRENGTH * p.square().sum()
            for name, p in self.named_parameters()
            if name.endswith("weight")
            and "ln_" not in name
            and "wte" not in name
            and "wpe" not in name
        )
        found.loss = found.loss + penalty / loops.MICRO
        return found


@pytest.mark.parametrize("clip", ["none", "norm"])
def test_a_model_that_counts_tokens(tmp_path, clip):
    config = transformers.GPT2Config(
        vocab_size=32,
        n_positions=8,
        n_embd=16,
        n_layer=1,
        n_head=2,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 32, (loops.STEPS * loops.MICRO * loops.ROWS, 8), generator=generator)
    dataset = [{"input_ids": row, "labels": row} for row in tokens]

    def run(case, way, replay=None):
        transformers.set_seed(0)
        model = (transformers.GPT2LMHeadModel if way == "fastreg" else PlainGPT2)(config)
        return fit(case, way, replay, tmp_path, model, dataset, None)

    loops.check_weights(run, loops.Case(clip))
