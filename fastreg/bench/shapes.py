"""The parameter tensors of three well-known models: name -> shape, in the model's own order.

Contract: trainable parameters only (no running statistics), tied ones once, as the sources list
them. The tests hold the number of tensors and the sum of their elements against the published ones.

- ``resnet50``: ``torchvision.models.resnet50()``, 161 tensors, 25,557,032 parameters.
- ``bert-base``: ``transformers.BertModel``, "bert-base-uncased" with its pooler, 199 tensors,
  109,482,240 parameters.
- ``gpt2``: ``transformers.GPT2Model``, "gpt2" (GPT-2 small; the output layer is the embedding),
  148 tensors, 124,439,808 parameters.
"""

from __future__ import annotations

from math import prod

Shapes = dict[str, tuple[int, ...]]


def _normalisation(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _resnet50() -> Shapes:
    shapes: Shapes = {"conv1.weight": (64, 3, 7, 7), **_normalisation("bn1", 64)}
    incoming = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        outgoing = 4 * width
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            shapes |= {
                f"{name}.conv1.weight": (width, incoming, 1, 1),
                **_normalisation(f"{name}.bn1", width),
                f"{name}.conv2.weight": (width, width, 3, 3),
                **_normalisation(f"{name}.bn2", width),
                f"{name}.conv3.weight": (outgoing, width, 1, 1),
                **_normalisation(f"{name}.bn3", outgoing),
            }
            if block == 0:  # the shortcut has another width
                shapes[f"{name}.downsample.0.weight"] = (outgoing, incoming, 1, 1)
                shapes |= _normalisation(f"{name}.downsample.1", outgoing)
            incoming = outgoing
    return shapes | _linear("fc", 1000, incoming)


def _bert_base() -> Shapes:
    width = 768
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (30522, width),
        "embeddings.position_embeddings.weight": (512, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        **_normalisation("embeddings.LayerNorm", width),
    }
    for layer in range(12):
        name = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            shapes |= _linear(f"{name}.attention.self.{part}", width, width)
        shapes |= _linear(f"{name}.attention.output.dense", width, width)
        shapes |= _normalisation(f"{name}.attention.output.LayerNorm", width)
        shapes |= _linear(f"{name}.intermediate.dense", 4 * width, width)
        shapes |= _linear(f"{name}.output.dense", width, 4 * width)
        shapes |= _normalisation(f"{name}.output.LayerNorm", width)
    return shapes | _linear("pooler.dense", width, width)


def _gpt2() -> Shapes:
    width = 768

    def transposed(name: str, inputs: int, outputs: int) -> Shapes:  # GPT-2 stores x @ weight
        return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}

    shapes: Shapes = {"wte.weight": (50257, width), "wpe.weight": (1024, width)}
    for layer in range(12):
        name = f"h.{layer}"
        shapes |= _normalisation(f"{name}.ln_1", width)
        shapes |= transposed(f"{name}.attn.c_attn", width, 3 * width)
        shapes |= transposed(f"{name}.attn.c_proj", width, width)
        shapes |= _normalisation(f"{name}.ln_2", width)
        shapes |= transposed(f"{name}.mlp.c_fc", width, 4 * width)
        shapes |= transposed(f"{name}.mlp.c_proj", 4 * width, width)
    return shapes | _normalisation("ln_f", width)


MODELS: dict[str, Shapes] = {"resnet50": _resnet50(), "bert-base": _bert_base(), "gpt2": _gpt2()}


def parameters(model: str) -> int:
    """Return how many parameters a model has.

    Examples
    --------
    >>> parameters("gpt2")
    124439808
    """
    return sum(prod(shape) for shape in MODELS[model].values())
