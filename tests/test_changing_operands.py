"""Arrays that are resized or freed by the code of another operand, while a call looks at them.

The cases run in processes of their own: without a second look they end in a segmentation fault, or
read and write memory that is somebody else's.
"""

import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest

BACKENDS = ["numpy", "native"] if importlib.util.find_spec("fastreg._core") else ["numpy"]

PRELUDE = """
    import os, sys
    import numpy as np
    from fastreg import attach, regularizers

    reg = regularizers.L1L2(0.5, 0.25)
    SIZE = 1 << 20  # its memory goes back to the system when it is freed

    def array(dtype=np.float32):
        return np.ones(SIZE, dtype)

    class Acting:
        '''An array by DLPack that does something whenever it is asked for its memory.'''

        def __init__(self, inner, act):
            self.inner, self.act = inner, act

        def __dlpack_device__(self):
            return self.inner.__dlpack_device__()

        def __dlpack__(self, **options):
            self.act()
            return self.inner.__dlpack__(**options)

    def shrink(x):
        x.resize(16, refcheck=False)

    def refused(call, words=""):
        try:
            call()
        except (RuntimeError, ValueError, TypeError) as error:
            assert words in str(error), error
        else:
            raise AssertionError("not refused")
"""

CASES = {
    "a weight, by its gradient": """
        w, g = array(), array()
        before = g.copy()
        refused(lambda: reg.accumulate(w, Acting(g, lambda: shrink(w))))
        assert (g == before).all()
    """,
    "a weight, by its gradient that is made": """
        w, g = array(), array()
        refused(lambda: reg.gradient(w, out=Acting(g, lambda: shrink(w))))
        assert (g == 1).all()
    """,
    "weights, by a later weight": """
        arrays = [array() for _ in range(4)]
        acting = Acting(array(), lambda: [shrink(x) for x in arrays])
        attach([*arrays, acting], reg)
    """,
    "weights, by a later weight, once the plan is made": """
        arrays, live = [array() for _ in range(4)], []
        acting = Acting(array(), lambda: [shrink(x) for x in arrays if live])
        penalties = attach([*arrays, acting], reg)
        penalties.value()
        live.append(True)
        try:
            penalties.value()  # the fallback reads what is there
        except RuntimeError as error:
            assert "moved, resized or freed" in str(error)
    """,
    "gradients, by a later gradient": """
        weights = [array() for _ in range(4)]
        grads = [array() for _ in range(3)]
        grads.append(Acting(array(), lambda: [shrink(x) for x in grads[:3]]))
        refused(lambda: attach(weights, reg).accumulate(grads))
        assert (grads[3].inner == 1).all()
    """,
    "a subclass of ndarray": """
        class Mine(np.ndarray):
            pass
        w = np.ndarray.__new__(Mine, (SIZE,), np.float32)
        w[...] = 1
        refused(lambda: reg.accumulate(w, Acting(array(), lambda: shrink(w))))
    """,
    "another shape of the same memory": """
        w, g = array(), array()
        def reshape():
            w.shape = (2, SIZE // 2)
        refused(lambda: reg.accumulate(w, Acting(g, reshape)), "")
        assert (g == 1).all()
    """,
    "another dtype of the same memory": """
        for act in (
            lambda: setattr(w, "dtype", np.int32), lambda: setattr(g, "dtype", np.int32)
        ):
            w, v, g, h = array(), array(), array(), array()
            call = lambda: attach([w, v], reg).accumulate([g, Acting(h, act)])
            refused(call, "was moved, resized or freed")
            g.dtype = np.float32
            assert (g == 1).all() and (h == 1).all()
    """,
    "gradients that may no longer be written": """
        weights, grads = [array() for _ in range(3)], [array() for _ in range(3)]
        lock = Acting(grads[2], lambda: setattr(grads[1].flags, "writeable", False))
        call = lambda: attach(weights, reg).accumulate([*grads[:2], lock])
        refused(call, "was moved, resized or freed")
        assert all((g == 1).all() for g in grads)
        w, g = array(), array()
        reg.accumulate(w, Acting(g, lambda: setattr(w.flags, "writeable", False)))  # no harm
        assert (g == 2).all()
    """,
    "gradients of rules, by rules": """
        class Rule:
            def __init__(self, act):
                self.act = act
            def __call__(self, w):
                return 1.0
            def gradient(self, w):
                self.act()
                return np.ones_like(w)
        for changed in (0, 2):
            weights, grads = [array() for _ in range(3)], [array() for _ in range(3)]
            act = lambda: setattr(grads[changed], "dtype", np.int32)
            rules = {"0": Rule(lambda: None), "1": reg, "2": Rule(act)}
            call = lambda: attach(weights, rules).accumulate(grads)
            refused(call, f"grads['{changed}'] was moved, resized or freed")
            grads[changed].dtype = np.float32
            assert all((g == 1).all() for g in grads)
    """,
    "no harm": """
        w, g = array(), array()
        acting = Acting(g, lambda: None)
        assert reg.accumulate(w, acting) == 0.75 * SIZE
        assert (g == 2).all()
        assert reg.accumulate(w[::2], Acting(g[::2], lambda: None)) == 0.375 * SIZE
        assert (g[::2] == 3).all() and (g[1::2] == 2).all()
    """,
    "buffers hold themselves": """
        import array as arrays
        w, g = arrays.array("f", [1.0] * SIZE), array()
        def act():
            try:
                w.extend([1.0])
            except BufferError:
                return
            raise AssertionError("a buffer that is exported must not be resized")
        assert reg.accumulate(w, Acting(g, act)) == 0.75 * SIZE
    """,
    "a weight, by a rule": """
        w, v, g, h = array(), array(), array(), array()
        class Rule:
            def __call__(self, w):
                return 1.0
            def gradient(self, w):
                made = np.ones_like(w)
                act()
                return made
        penalties = attach([v, w], {"0": reg, "1": Rule()})
        for act in (
            lambda: shrink(v), lambda: shrink(w), lambda: shrink(g), lambda: shrink(h),
        ):
            v.resize(SIZE, refcheck=False); w.resize(SIZE, refcheck=False)
            g.resize(SIZE, refcheck=False); h.resize(SIZE, refcheck=False)
            for x in (v, w, g, h):
                x[...] = 1
            refused(lambda: penalties.accumulate([g, h]))
            assert (g == 1).all() and (h == 1).all()
    """,
}


def run(backend, *cases):
    """Run all cases in one process, and say in which one it ended."""
    script = textwrap.dedent(PRELUDE)
    for name, case in cases:
        body = textwrap.indent(textwrap.dedent(case), "    ")
        script += f"print({name!r}, flush=True)\ndef case():\n{body}\ncase()\n"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script],
        env={**os.environ, "FASTREG_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-3000:]


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_operands_may_change_nothing(backend):
    run(backend, *CASES.items())


TORCH_CASES = {
    "resize_": "w.resize_(16)",
    "the storage is freed": "w.untyped_storage().resize_(0)",
    "the storage is cut": "w.untyped_storage().resize_(64)",
    "set_": "w.set_(torch.ones(16))",
    "data": "w.data = torch.ones(16)",
    "another memory of the same size": "w.data = torch.ones_like(w)",
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_of_torch_that_other_operands_change(backend):
    pytest.importorskip("torch")
    cases = [
        (
            f"{name}, {layout}",
            f"""
            import torch
            w = torch.ones(SIZE){layout}
            g = np.ones(len(w), np.float32)
            def act():
                {change}
            refused(lambda: reg.accumulate(w, Acting(g, act)))
            assert (g == 1).all()
            """,
        )
        for name, change in TORCH_CASES.items()
        for layout in ("", "[::2]")
    ]
    run(backend, *cases)
