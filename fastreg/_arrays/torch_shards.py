"""Sharded tensors: the part that this process holds, and sums over the processes that share one.

Contract
--------
- The elements of a DTensor are read where they lie, in its local shard, and without communication;
  what has not the elements of the tensor (a pending sum, a flat parameter of FSDP1) is refused.
- A penalty of shards is summed over the mesh dimensions that shard its tensor and over no others,
  so that no replica counts twice; a tensor that no dimension shards is not communicated.
- There is one all-reduce of a float64 vector per process group in use; a second, where there are
  more than 1,017 tensors.  Groups come in the order in which the tensors name them, which is the
  same in every process that has the same model.
- The vector has one length whatever is summed, and begins with what the processes have to agree on
  (``agreement``).  So where they disagree all of them learn it, and none waits for the others.

Reading a local shard by ``DTensor.to_local()`` takes 3 us and is a call to autograd; its attribute
``_local_tensor`` takes none, and is what torch's own optimizers are given.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias, cast, overload

import torch

from .._base import errors
from . import torch_agreement
from .libraries import is_dtensor
from .torch_agreement import HEAD, Terms

Tensors: TypeAlias = Sequence[torch.Tensor]
Names: TypeAlias = Sequence[str]


def local_tensors(tensors: Tensors, names: Names | None = None) -> tuple[torch.Tensor, ...]:
    """Return plain tensors: of each DTensor the shard that this process holds.

    Parameters
    ----------
    tensors : sequence of torch.Tensor
        Of any dtype, shape and device; plain ones are given back as they are.
    names : sequence of str, optional
        Their names, for errors.

    Returns
    -------
    tuple of torch.Tensor
        They share memory with `tensors`; autograd does not follow from one to the other.  A
        process that has no rows of a tensor has an empty shard.

    Raises
    ------
    TypeError
        For a DTensor with a placement that is neither Shard nor Replicate: Partial is a sum that
        has not been taken.  For a parameter of FSDP1, whose elements lie in a flat one.

    Examples
    --------
    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(3))
    >>> local_tensors([weight])[0] is weight
    True
    """
    if not _can_be_distributed() or (
        _FSDP1 not in sys.modules and _PLAIN.issuperset(map(type, tensors))
    ):
        return tuple(tensors)
    label = _Label("tensors", names)
    return tuple([_local(tensor, label, place) for place, tensor in enumerate(tensors)])


def local_gradients(
    gradients: Tensors, tensors: Tensors, names: Names | None = None
) -> tuple[torch.Tensor, ...]:
    """Return the plain gradients that lie as the local shards of `tensors` do.

    Parameters
    ----------
    gradients : sequence of torch.Tensor
        One for each tensor, a DTensor on the same mesh with the same placements where that is one.
    tensors : sequence of torch.Tensor
        What they are the gradients of.
    names : sequence of str, optional
        Their names, for errors.

    Returns
    -------
    tuple of torch.Tensor
        They share memory with `gradients`.

    Raises
    ------
    TypeError
        Where one of the two is a DTensor and the other is not, or the gradient is a pending sum
        (Partial).
    ValueError
        Where mesh or placements differ.
    """
    if not _can_be_distributed() or (
        _PLAIN.issuperset(map(type, gradients)) and _PLAIN.issuperset(map(type, tensors))
    ):
        return tuple(gradients)
    label = _Label("grads", names)
    return tuple(
        [
            _local_gradient(gradient, tensor, label, place)
            for place, (gradient, tensor) in enumerate(zip(gradients, tensors, strict=True))
        ]
    )


class Together(NamedTuple):
    """What the processes that share a model have in common when they sum penalties."""

    terms: Terms
    groups: Sequence[tuple[Any, str]]
    """What :func:`process_groups` returns of all parameters, penalised or not."""


def process_groups(tensors: Tensors) -> list[tuple[Any, str]]:
    """Return the process groups of a model, each with its kind of device.

    They are those of all dimensions of the meshes that shard some of the tensors: over replicas
    nothing is summed, but they have to agree as well.
    """
    groups: dict[Any, str] = {}
    for mesh in dict.fromkeys(
        cast(Any, tensor).device_mesh for tensor in tensors if _is_sharded(tensor)
    ):
        if mesh.get_coordinate() is None:
            continue
        for dimension in range(mesh.ndim):
            if mesh.size(dimension) > 1:
                groups[mesh.get_group(dimension)] = mesh.device_type
    return list(groups.items())


@overload
def summed(
    values: Sequence[float], tensors: Tensors, together: Together | None = None
) -> list[float]: ...


@overload
def summed(
    values: torch.Tensor, tensors: Tensors, together: Together | None = None
) -> torch.Tensor: ...


def summed(
    values: Sequence[float] | torch.Tensor, tensors: Tensors, together: Together | None = None
) -> list[float] | torch.Tensor:
    """Sum what each process has of its shards over the processes that share a tensor.

    This is a collective operation: every process that has a shard of one of the tensors has to call
    it, with the same tensors in the same order.  Without a sharded tensor nothing is communicated.

    Parameters
    ----------
    values : sequence of float, or torch.Tensor
        For each tensor what its local shard gives: penalties, counts of zeros.  A tensor of shape
        (number of tensors,) is reduced where the mesh is and stays on its device; autograd follows
        it, and its gradient is that of the result: each process has the gradient of its own shards.
    tensors : sequence of torch.Tensor
        DTensors and plain ones, as they were before :func:`local_tensors`.
    together : Together, optional
        What the processes have to agree on besides the shapes of the tensors.

    Returns
    -------
    list of float, or torch.Tensor
        For each tensor the sum over the mesh dimensions that shard it, in float64; as it was, where
        none does.  All processes have the same bits, as all-reduce gives them the same.

    Raises
    ------
    ValueError
        When there are not as many values as tensors.
    RuntimeError
        In every process, where they disagree, with what differs.

    Examples
    --------
    >>> import torch
    >>> summed([0.5, 2.0], [torch.ones(3), torch.ones(2)])
    [0.5, 2.0]
    """
    if len(values) != len(tensors):
        raise ValueError(
            f"values has {len(values)} entries for {len(tensors)} tensors; pass one for each"
        )
    groups = _groups(tensors, () if together is None else together.groups)
    if isinstance(values, torch.Tensor):
        if not groups:
            return values
        apply: Any = _Summed.apply
        if _LOSES_GRADIENTS and torch.compiler.is_compiling():
            apply = _apart
        return cast(torch.Tensor, apply(values, groups, _terms(tensors, together)))
    if not groups:
        return list(values)
    # Where the first of the groups reduces: there is one all-reduce, and then one copy back.
    vector = torch.tensor(values, dtype=torch.float64, device=groups[0].device)
    return cast("list[float]", _reduced(vector, groups, _terms(tensors, together)).tolist())


def identity(tensor: torch.Tensor, name: str | None = None) -> Hashable:
    """Return what is equal for two DTensors that are the same elements: tied ones.

    Every process has to see the same ties, or their vectors of penalties would differ in length:
    empty shards are told apart by the storage that they would lie in.  A DTensor and its transpose
    are equal, as plain arrays are.

    Parameters
    ----------
    tensor : torch.Tensor
        A DTensor.
    name : str, optional
        Its name, for errors.

    Raises
    ------
    TypeError
        As :func:`local_tensors`.
    """
    local = local_tensors([tensor], None if name is None else [name])[0]
    axes = zip(local.shape, local.stride(), strict=True)
    return (
        local.untyped_storage()._cdata,
        local.storage_offset(),
        local.dtype,
        tuple(sorted(tensor.shape)),
        tuple(sorted((stride, extent) for extent, stride in axes if extent > 1))
        if local.numel()
        else (),
    )


def are_tied_while_empty(tensors: Tensors) -> bool:
    """Return whether two of the DTensors that are empty in this process are the same elements.

    Examples
    --------
    >>> import torch
    >>> are_tied_while_empty([torch.ones(0), torch.ones(0)])  # nothing that others see differently
    False
    """
    empty = [
        identity(tensor)
        for tensor in tensors
        if is_dtensor(tensor) and not cast(Any, tensor)._local_tensor.numel()
    ]
    return len(set(empty)) < len(empty)


# ---------------------------------------------------------------- one tensor

# In a graph of torch 2.11 the gradient of what was communicated is zero, without a word.
_LOSES_GRADIENTS = torch.__version__ < (2, 13)


_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))
_FSDP1 = "torch.distributed.fsdp._flat_param"
_COLLECTIVES = "torch.distributed._functional_collectives"
_MODULES = ("torch.distributed.tensor", _COLLECTIVES, _FSDP1)


def _can_be_distributed() -> bool:
    """Return whether there can be tensors that are not whole or not there."""
    return any(name in sys.modules for name in _MODULES)  # torch loads none of them by itself


class _Label:
    """What errors call the tensors of an argument; a name is made where it is needed."""

    __slots__ = ("argument", "names")

    def __init__(self, argument: str, names: Names | None) -> None:
        self.argument = argument
        self.names = names

    def __call__(self, place: int) -> str:
        return f"{self.argument}[{place if self.names is None else self.names[place]!r}]"


def _local(tensor: torch.Tensor, label: _Label, place: int) -> torch.Tensor:
    if type(tensor) in _PLAIN:
        # FSDP1 leaves views of its flat parameter under the names of the parameters: plain
        # tensors of a part of the elements, which nothing else tells from whole ones.
        if "_fsdp_flattened" in tensor.__dict__:
            raise errors.special_array_error(
                label(place),
                "a parameter of FullyShardedDataParallel (FSDP1), of which this process has a part "
                "of unknown shape",
                "shard the model with torch.distributed.fsdp.fully_shard (FSDP2)",
            )
        return tensor
    if is_dtensor(tensor):
        _require_elements(tensor, label, place)
        tensor = cast(Any, tensor)._local_tensor
    return _arrived(tensor)


def _arrived(tensor: torch.Tensor) -> torch.Tensor:
    """Wait for a tensor that a collective operation is still writing."""
    return cast(torch.Tensor, cast(Any, tensor).wait()) if is_pending(tensor) else tensor


def require_whole(tensors: Tensors, names: Names) -> None:
    """Refuse tensors whose penalty is of whole tensors, where they are sharded.

    Raises
    ------
    TypeError
        With its name.
    """
    for place, tensor in enumerate(tensors):
        if _is_sharded(tensor):
            raise errors.special_array_error(
                _Label("tensors", names)(place),
                "a sharded DTensor, and what its rule gives for the shards need not sum to what it "
                "gives for the tensor",
                "use L1, L2 or L1L2, or add the rule's penalty of parameter.full_tensor() to the "
                "loss",
            )


def is_whole(tensor: torch.Tensor) -> bool:
    """Return whether this process has all elements of a tensor."""
    return not _is_sharded(tensor)


def is_pending(tensor: torch.Tensor) -> bool:
    """Return whether a collective operation may still be writing a tensor."""
    module = sys.modules.get(_COLLECTIVES)
    return module is not None and isinstance(tensor, module.AsyncCollectiveTensor)


def _require_elements(tensor: Any, label: _Label, place: int) -> None:
    for placement in tensor.placements:
        if not placement.is_replicate() and not _shards(placement):
            raise errors.special_array_error(
                label(place),
                f"a DTensor with the placements {tensor.placements}, which is no tensor of "
                "elements before its parts are summed"
                if placement.is_partial()
                else f"a DTensor with the placement {placement}, which is not known here",
                f"pass {label(place)}.redistribute(placements=...) with Shard or Replicate instead",
            )


def _is_sharded(tensor: torch.Tensor) -> bool:
    return is_dtensor(tensor) and any(map(_shards, cast(Any, tensor).placements))


def _shards(placement: Any) -> bool:
    # _StridedShard (tensor parallel under FSDP2) is no Shard, and its is_shard() is False.
    return bool(placement.is_shard()) or type(placement).__name__ == "_StridedShard"


def _local_gradient(gradient: Any, tensor: Any, label: _Label, place: int) -> torch.Tensor:
    if is_dtensor(gradient) != is_dtensor(tensor):
        raise TypeError(
            f"{label(place)} is {_kind(gradient)}, but its tensor is {_kind(tensor)}; pass a "
            "gradient that is distributed as its tensor is"
        )
    if not is_dtensor(tensor):
        return _arrived(gradient)
    if any(placement.is_partial() for placement in gradient.placements):
        # Sequence parallel layers leave those of their replicated parameters so.
        raise errors.special_array_error(
            label(place),
            f"a DTensor with the placements {gradient.placements}, a sum that has not been taken",
            "take it with parameter.grad = parameter.grad.redistribute(placements="
            "parameter.placements) before",
        )
    if gradient.placements != tensor.placements or gradient.device_mesh != tensor.device_mesh:
        raise ValueError(
            f"{label(place)} has the placements {gradient.placements} on "
            f"{gradient.device_mesh}, but its tensor has {tensor.placements} on "
            f"{tensor.device_mesh}; redistribute the gradient"
        )
    return _arrived(gradient._local_tensor)


def _kind(tensor: object) -> str:
    return "a DTensor" if is_dtensor(tensor) else "a plain tensor"


# ---------------------------------------------------------------- sums over a mesh


class _Group:
    """A process group, the device it communicates from, and which values it sums."""

    __slots__ = ("device", "group", "places")

    def __init__(self, group: Any, device: str) -> None:
        self.group = group
        self.device = device
        self.places: list[int] = []


def _groups(tensors: Tensors, known_groups: Iterable[tuple[Any, str]]) -> list[_Group]:
    """Return the process groups over which the tensors are sharded, and the places of those.

    The known groups come first, also those that shard none of the tensors.
    """
    label = _Label("tensors", None)
    groups: dict[Any, _Group] = {group: _Group(group, device) for group, device in known_groups}
    known: dict[Any, list[_Group]] = {}
    for place, tensor in enumerate(tensors):
        if not is_dtensor(tensor):
            continue
        spec = cast(Any, tensor)
        key = spec.device_mesh, spec.placements
        mine = known.get(key)
        if mine is None:
            _require_elements(spec, label, place)
            known[key] = mine = _groups_of(*key, groups)
        for group in mine:
            group.places.append(place)
    return list(groups.values())


def _groups_of(mesh: Any, placements: Any, groups: dict[Any, _Group]) -> list[_Group]:
    if mesh.get_coordinate() is None:  # this process has no part of the tensor
        return []
    found = []
    for dimension, placement in enumerate(placements):
        if _shards(placement) and mesh.size(dimension) > 1:
            # A dimension of a mesh and the mesh sliced to it have the same process group: tensors
            # of both share an all-reduce.
            group = mesh.get_group(dimension)
            found.append(groups.setdefault(group, _Group(group, mesh.device_type)))
    return found


_LENGTH = 1024
"""Of what is reduced first, whatever it is: the reductions of processes that disagree fit."""


def _reduced(
    values: torch.Tensor, groups: list[_Group], terms: Terms | None, may_wait: bool = True
) -> torch.Tensor:
    """Return new values, summed over each group in turn.

    `terms` is None while torch compiles: then nothing is compared.  Where the host may not wait for
    a device to learn that processes disagree, the values are NaN.
    """
    vector = values.detach().to(torch.float64, copy=True)
    heard = _Heard()
    for one in groups:
        everything = len(one.places) == len(vector)
        part = vector if everything else vector[one.places]
        # Parameters that are offloaded to the host are still sharded over a mesh of devices, whose
        # group need not be able to communicate from the host.
        sent = part if part.device.type == one.device else part.to(one.device)
        if terms is None:
            torch.distributed.all_reduce(sent, group=one.group)
        else:
            sent = _agreed(sent, one.group, terms, heard, may_wait or _may_wait(sent))
        if everything and sent is part:
            continue
        vector[slice(None) if everything else one.places] = sent.to(vector.device)
    if heard.descriptions:
        raise torch_agreement.error(heard.descriptions)
    return vector if heard.all_agree is None else torch.where(heard.all_agree, vector, math.nan)


class _Heard:
    """What this process has heard of disagreement in the groups so far.

    It is no error before the other groups have heard of it, as they wait for this process.
    """

    def __init__(self) -> None:
        self.descriptions: torch_agreement.Descriptions = {}
        self.all_agree: torch.Tensor | None = None
        """What a device knows, 0-d, where the host does not wait for it."""


def _may_wait(tensor: torch.Tensor) -> bool:
    return bool(tensor.device.type == "cpu")


def _agreed(
    part: torch.Tensor, group: Any, terms: Terms, heard: _Heard, may_wait: bool
) -> torch.Tensor:
    """Sum over a group, and hear whether its processes agree."""
    processes = torch.distributed.get_world_size(group)
    count = min(len(part), _LENGTH - HEAD)
    sent = part.new_zeros(_LENGTH)
    sent[:HEAD] = torch.tensor(terms.head(bool(heard.descriptions)), dtype=part.dtype)
    if heard.all_agree is not None:
        sent[HEAD - 1] = ~heard.all_agree
    sent[HEAD : HEAD + count] = part[:count]
    torch.distributed.all_reduce(sent, group=group)
    if not may_wait:
        agree = terms.agree(sent[:HEAD], processes)
        heard.all_agree = agree if heard.all_agree is None else agree & heard.all_agree
    elif not terms.agrees(sent[:HEAD].tolist(), processes):
        mine = {torch.distributed.get_rank(): terms.describe()}
        heard.descriptions.update(torch_agreement.gathered({**heard.descriptions, **mine}, group))
        return part
    if count == len(part):
        return sent[HEAD : HEAD + count]
    rest = part[count:].clone()
    torch.distributed.all_reduce(rest, group=group)
    return torch.cat([sent[HEAD : HEAD + count], rest])


def _terms(tensors: Tensors, together: Together | None) -> Terms | None:
    if torch.compiler.is_compiling():
        return None
    return _terms_of_shapes(tensors) if together is None else together.terms


def _terms_of_shapes(tensors: Tensors) -> Terms:
    shapes = [tuple(tensor.shape) for tensor in tensors]
    return Terms(
        repr(shapes).encode(),
        lambda: {
            f"tensors[{place}]": f"of the shape {shape}" for place, shape in enumerate(shapes)
        },
    )


class _Summed(torch.autograd.Function):  # type: ignore[misc]
    """Sums of local values, of which each process differentiates its own: no communication."""

    @staticmethod
    def forward(values: torch.Tensor, groups: list[_Group], terms: Terms | None) -> torch.Tensor:
        return _reduced(values, groups, terms, may_wait=False).to(values.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        # The penalty is one number that all processes have, not one for each of them: what a
        # process is told of the sum holds for its part of it.
        return gradient, None, None


if _LOSES_GRADIENTS:

    def _apart(*arguments: Any) -> Any:
        """Apply :class:`_Summed` between two graphs; with ``fullgraph=True`` torch refuses that."""
        return _Summed.apply(*arguments)

    _apart = torch.compiler.disable(_apart)
