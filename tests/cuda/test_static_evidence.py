"""The reader of machine code calls faults by their names, and nothing else a fault."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import static_evidence as evidence


def kernel(**changes: Any) -> Any:
    """A kernel of float32, value and added gradient, that has no fault but for the changes."""
    facts: dict[str, Any] = {
        "name": "_ZN7fastreg4cuda14penalty_chunksINS_3F32ELj7EEEvNS0_9ChunkWorkE",
        "registers": 72,
        "stack": 0,
        "local": 0,
        "instructions": Counter({"LDG.E": 96, "DFMA": 60, "FMUL": 30, "STG.E": 60}),
        "fused": Counter({"DFMA": 60}),
    }
    return evidence.Kernel(**(facts | changes))


def test_a_kernel_as_it_should_be() -> None:
    assert evidence.faults(kernel()) == []


def test_strided_kernels_are_held_to_the_same() -> None:
    name = "_ZN7fastreg4cuda14strided_chunksINS_3F64ELj1EEEvNS0_11StridedWorkE"
    good = kernel(name=name, registers=64, instructions=Counter({"LDG.E.U8": 8}), fused=Counter())
    assert (good.label, evidence.faults(good)) == ("strided F64 V", [])
    bad = kernel(name=name, registers=64, instructions=Counter({"LD.E": 8}))
    assert len(evidence.faults(bad)) == 2


def test_gradients_that_are_added_alone_leave_room_for_a_fourth_block() -> None:
    name = "_ZN7fastreg4cuda14penalty_chunksINS_3F32ELj6EEEvNS0_9ChunkWorkE"
    assert evidence.faults(kernel(name=name, registers=64, fused=Counter())) == []
    (fault,) = evidence.faults(kernel(name=name, registers=65, fused=Counter()))
    assert fault == "65 registers, of at most 64"


@pytest.mark.parametrize(
    ("dtype", "outputs", "allowed"),
    [("3F32", 10, {"FFMA": 209, "FFMA.RZ": 3}), ("3F64", 11, {"DFMA": 178, "FFMA": 24})],
)
def test_divisions_of_proximal_steps_are_fused_inside(
    dtype: str, outputs: int, allowed: dict[str, int]
) -> None:
    name = f"_ZN7fastreg4cuda14penalty_chunksINS_{dtype}ELj{outputs}EEEvNS0_9ChunkWorkE"
    loads = Counter({"LDG.E": 81, "LDG.E.64": 71})
    assert evidence.faults(kernel(name=name, instructions=loads, fused=Counter(allowed))) == []
    more = Counter(allowed) + Counter([next(iter(allowed))])
    (fault,) = evidence.faults(kernel(name=name, instructions=loads, fused=more))
    assert "fused where the contract rounds twice" in fault


@pytest.mark.parametrize(
    ("name", "label", "facts"),
    [
        ("11norm_chunksINS_3F32EEEvNS0_8NormWorkE", "norms F32", {"registers": 64}),
        ("12scale_chunksINS_4BF16EEEvNS0_9ScaleWorkE", "scaling BF16", {"registers": 40}),
        ("19strided_norm_chunksENS0_8NormWorkE", "strided norms", {"registers": 80}),
        ("20strided_scale_chunksINS_3F64EEEvNS0_9ScaleWorkE", "strided scaling F64", {}),
        ("11norm_valuesENS0_8NormSumsE", "norm values", {"first_loads": 16}),
    ],
)
def test_kernels_of_norms(name: str, label: str, facts: dict[str, Any]) -> None:
    loads = Counter({"LDG.E": 20, "LDG.E.U16": 20}) if "BF16" in name else Counter({"LDG.E": 20})
    fused = Counter({"DFMA": 20}) if label in ("norms F32", "norm values") else Counter()
    facts = {"name": f"_ZN7fastreg4cuda{name}", "instructions": loads, "fused": fused} | facts
    good = kernel(**facts)
    assert (good.label, evidence.faults(good)) == (label, [])
    (fault,) = evidence.faults(kernel(**facts | {"fused": fused + Counter({"FFMA": 3})}))
    assert "fused where the contract rounds twice" in fault
    (fault,) = evidence.faults(kernel(**facts | {"registers": 81}))
    assert fault.startswith("81 registers")


LOAD = "        /*0470*/              @!P4 LDG.E.64.STRONG.GPU R26, desc[UR14][R10.64] ;"
STORE = "        /*0e00*/                   STS.64 [R57], R26 ;"


@pytest.mark.parametrize(
    ("loads_and_stores", "expected"),
    [
        ([LOAD] * 16 + [STORE] * 16, []),
        (
            [LOAD, STORE] * 16,
            ["1 loads of chunk sums before the first store, not the 16 planned"],
        ),
    ],
)
def test_chunk_sums_are_loaded_before_any_is_stored(
    monkeypatch: pytest.MonkeyPatch, loads_and_stores: list[str], expected: list[str]
) -> None:
    name = "_ZN7fastreg4cuda14penalty_valuesENS0_7SumWorkE"
    said = {
        "cuobjdump": f" Function {name}:\n REG:64 STACK:0 SHARED:8 LOCAL:0",
        "nvdisasm": "\n".join([f'\t.section\t.text.{name},"ax"', *loads_and_stores]),
    }
    monkeypatch.setattr(evidence, "tool", lambda name: name)
    monkeypatch.setattr(evidence, "output_of", lambda tool, *rest: said[tool])
    (found,) = evidence.read_cubin(Path("a.cubin"))
    assert evidence.faults(found) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stack": 8}, "8 bytes of stack"),
        ({"local": 16}, "16 of local memory: spills"),
        ({"registers": 81}, "81 registers, of at most 80"),
        ({"registers": 0}, "0 registers"),
        ({"fused": Counter({"DFMA": 60, "FFMA": 2})}, "2 FFMA: fused where the contract rounds"),
        ({"instructions": Counter({"LDG.E": 95})}, "95 loads of 4 bytes, not the 96 planned"),
        ({"instructions": Counter({"LDG.E": 96, "LDG.E.U8": 1})}, "LDG.E.U8: narrower"),
        ({"instructions": Counter({"LDG.E": 96, "LD.E": 1})}, "LD.E: .* memory of unknown kind"),
        ({"instructions": Counter({"LDG.E": 96, "STL.64": 1})}, "STL.64: a thread's own memory"),
    ],
)
def test_a_fault_is_named(changes: dict[str, Any], words: str) -> None:
    (fault,) = evidence.faults(kernel(**changes))
    assert re.search(words, fault)
