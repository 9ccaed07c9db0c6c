"""The headline cells for asv, on a machine that does nothing else; elsewhere read ratios."""

import numpy as np

import fastreg
from fastreg.regularizers import L1L2


class OneTensor:
    params = ([64, 65_536, 16_777_216], ["float16", "float32", "float64"])
    param_names = ("elements", "dtype")

    def setup(self, elements, dtype):
        self.w = np.ones(elements, dtype)
        self.grad = np.zeros_like(self.w)
        self.regularizer = L1L2(l1=1e-5, l2=1e-4)

    def time_value(self, elements, dtype):
        self.regularizer(self.w)

    def time_accumulate(self, elements, dtype):
        self.regularizer.accumulate(self.w, self.grad)

    def time_prox(self, elements, dtype):
        self.regularizer.prox(self.w, 1e-3, out=self.w)


class Model:
    def setup(self):
        self.params = {str(place): np.ones((64, 64), np.float32) for place in range(200)}
        self.grads = {name: np.zeros_like(w) for name, w in self.params.items()}
        self.penalties = fastreg.attach(self.params, L1L2(l1=1e-5, l2=1e-4))

    def time_accumulate(self):
        self.penalties.accumulate(self.grads)
