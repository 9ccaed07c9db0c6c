"""Who takes part in a benchmark, by name. A further peer is one class and one entry here.

Each is the best that someone who knows it well would write for the case, with as many threads as
the others. Importing this package imports none of them.
"""

from __future__ import annotations

from fastreg.bench.peers.base import Peer, Prepared
from fastreg.bench.peers.floors import FLOORS, Floor, TorchFloor
from fastreg.bench.peers.own import Fastreg, policy_names, under_policies
from fastreg.bench.peers.with_jax import Jax
from fastreg.bench.peers.with_keras import Keras
from fastreg.bench.peers.with_numba import Numba, NumbaSingle
from fastreg.bench.peers.with_numexpr import Numexpr
from fastreg.bench.peers.with_numpy import Numpy, NumpyDot
from fastreg.bench.peers.with_torch import Torch, TorchCompile, TorchForeach

__all__ = [
    "FLOORS",
    "PEERS",
    "Fastreg",
    "Floor",
    "Peer",
    "Prepared",
    "TorchFloor",
    "installed",
    "policy_names",
    "under_policies",
]

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Numpy(),
        NumpyDot(),
        Torch(),
        TorchForeach(),
        TorchCompile(),
        Jax(),
        Numba(),
        NumbaSingle(),
        Numexpr(),
        Keras(),
    )
}


def installed(quick: bool = False) -> list[str]:
    """Return the peers that can run here by name; quick: those that need no compiling.

    Examples
    --------
    >>> "numpy" in installed()
    True
    """
    return [
        name
        for name, peer in PEERS.items()
        if peer.available() and not (quick and peer.compiles_slowly)
    ]
