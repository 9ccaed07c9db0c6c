"""What the tests of the benchmark share."""

from __future__ import annotations

import pytest

from fastreg.bench import shapes


@pytest.fixture
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> str:
    """A model of three tensors, which start at whole lines with gaps between them."""
    monkeypatch.setitem(shapes.MODELS, "tiny", {"kernel": (5, 7), "bias": (7,), "scale": (1,)})
    return "tiny"


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output has no width of its own, as that of pytest-xdist's processes would have."""
    monkeypatch.delenv("COLUMNS", raising=False)
