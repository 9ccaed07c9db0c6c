"""Sharded tensors: the local shard, and sums over the processes that share a tensor.

Contract
--------
- The elements of a DTensor are read in its local shard, without communication; a tensor that does
  not hold its elements (a Partial placement, a flat parameter of FSDP1) is refused.
- A penalty of shards is summed over the mesh dimensions that shard its tensor and over no others,
  so that no replica counts twice; a tensor that no dimension shards is not communicated.
- There is one all-reduce of a float64 vector per process group; a second, where there are more than
  1,017 tensors.  Groups come in the order in which the tensors name them, which is the same in
  every process that has the same model.
- The vector has one length whatever is summed, and begins with what the processes have to agree on
  (``torch_agreement``).  So where they disagree all of them learn it, and none waits for others.

Reading a local shard by ``DTensor.to_local()`` takes 3 us and is a call to autograd; its attribute
``_local_tensor``, which torch's own optimizers read, takes no time.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias, cast, overload

import torch

from .._base import errors
from . import torch_agreement
from .libraries import is_dtensor
from .library import loaded
from .torch_agreement import HEAD, Terms

Tensors: TypeAlias = Sequence[torch.Tensor]
Names: TypeAlias = Sequence[str]


def local_tensors(tensors: Tensors, names: Names | None = None) -> tuple[torch.Tensor, ...]:
    """Return plain tensors: of each DTensor the local shard, which may be empty.

    They share storage with `tensors` and are outside the autograd graph; `names` are for errors.

    Raises
    ------
    TypeError
        For a DTensor with a placement that is neither Shard nor Replicate: Partial is a sum that
        has not been taken.  For a parameter of FSDP1, whose elements are in a flat one.
    """
    if not _can_be_distributed() or (
        loaded(_FSDP1) is None and _PLAIN.issuperset(map(type, tensors))
    ):
        return tuple(tensors)
    label = _Label("tensors", names)
    return tuple([_local(tensor, label, place) for place, tensor in enumerate(tensors)])


def local_gradients(
    gradients: Tensors, tensors: Tensors, names: Names | None = None
) -> tuple[torch.Tensor, ...]:
    """Return the local shards of gradients, laid out as those of `tensors` are.

    Raises
    ------
    TypeError
        Where one of the two is a DTensor and the other is not, or the gradient is Partial.
    ValueError
        Where mesh or placements differ.
    """
    if not _can_be_distributed() or (
        _PLAIN.issuperset(map(type, gradients)) and _PLAIN.issuperset(map(type, tensors))
    ):
        return tuple(gradients)
    label = _Label("grads", names)
    pairs = enumerate(zip(gradients, tensors, strict=True))
    return tuple([_local_gradient(grad, tensor, label, place) for place, (grad, tensor) in pairs])


class Together(NamedTuple):
    """The terms that the processes of a model agree on when they sum penalties."""

    terms: Terms
    groups: Sequence[tuple[Any, str]]
    """:func:`process_groups` of all parameters, penalised or not."""


def process_groups(tensors: Tensors) -> list[tuple[Any, str]]:
    """Return the process groups of a model, each with its device type.

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
    """Sum a value per local shard over the processes that share its tensor.

    This is a collective operation: every process that has a shard of one of the tensors has to call
    it, with the same tensors in the same order.  Without a sharded tensor nothing is communicated.
    A tensor of values is reduced on its device if the mesh is there; its gradient is that of the
    result, so each process has the gradient of its own shards.

    Returns
    -------
    list of float, or torch.Tensor
        For each tensor the sum over the mesh dimensions that shard it, in float64; the value itself
        where none does.  All processes have the same bits, as all-reduce returns the same.

    Raises
    ------
    ValueError
        When there are not as many values as tensors.
    RuntimeError
        In every process, where they disagree, with what differs.
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
    """Return a key that is equal for DTensors with the same elements: tied ones.

    Every process has to see the same ties, or their vectors of penalties would differ in length:
    empty shards are told apart by their storage.  A DTensor and its transpose are equal, as plain
    arrays are.  Raises as :func:`local_tensors`.
    """
    local = local_tensors([tensor], None if name is None else [name])[0]
    axes = zip(local.stride(), local.shape, strict=True) if local.numel() else ()
    steps = tuple(sorted((stride, extent) for stride, extent in axes if extent > 1))
    place = local.untyped_storage()._cdata, local.storage_offset(), local.dtype
    return *place, tuple(sorted(tensor.shape)), steps


def are_tied_while_empty(tensors: Tensors) -> bool:
    """Return whether two DTensors that are empty in this process have the same elements."""
    empty = [
        identity(tensor)
        for tensor in tensors
        if is_dtensor(tensor) and not cast(Any, tensor)._local_tensor.numel()
    ]
    return len(set(empty)) < len(empty)


# In a graph of torch 2.11 the gradient of an all-reduced value is silently zero.
_LOSES_GRADIENTS = torch.__version__ < (2, 13)


_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))
_FSDP1 = "torch.distributed.fsdp._flat_param"
_COLLECTIVES = "torch.distributed._functional_collectives"
_MODULES = ("torch.distributed.tensor", _COLLECTIVES, _FSDP1)


def _can_be_distributed() -> bool:
    """Return whether there can be sharded or pending tensors."""
    return any(map(loaded, _MODULES))  # torch loads none of them by itself


class _Label:
    """Labels of an argument's tensors for errors, made when they are needed."""

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
    """Return a tensor, after a collective operation that is still writing it."""
    return cast(torch.Tensor, cast(Any, tensor).wait()) if is_pending(tensor) else tensor


def require_whole(tensors: Tensors, names: Names) -> None:
    """Raise TypeError for a sharded tensor, whose rule's penalty is of whole tensors."""
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
    module = loaded(_COLLECTIVES)
    return module is not None and isinstance(tensor, module.AsyncCollectiveTensor)


def _require_elements(tensor: Any, label: _Label, place: int) -> None:
    for placement in tensor.placements:
        if not placement.is_replicate() and not is_shard(placement):
            raise errors.special_array_error(
                label(place),
                f"a DTensor with the placements {tensor.placements}, which is no tensor of "
                "elements before its parts are summed"
                if placement.is_partial()
                else f"a DTensor with the placement {placement}, which is not known here",
                f"pass {label(place)}.redistribute(placements=...) with Shard or Replicate instead",
            )


def _is_sharded(tensor: torch.Tensor) -> bool:
    return is_dtensor(tensor) and any(map(is_shard, cast(Any, tensor).placements))


def is_shard(placement: Any) -> bool:
    """Return whether a placement leaves each process a part of the elements."""
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


class _Group:
    """A process group, the device type of its communication, and the values it sums."""

    __slots__ = ("device", "group", "places")

    def __init__(self, group: Any, device: str) -> None:
        self.group = group
        self.device = device
        self.places: list[int] = []


def _groups(tensors: Tensors, known_groups: Iterable[tuple[Any, str]]) -> list[_Group]:
    """Return the process groups over which tensors are sharded, with the tensors' places.

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
        if is_shard(placement) and mesh.size(dimension) > 1:
            # A dimension of a mesh and the mesh sliced to it have the same process group: tensors
            # of both share an all-reduce.
            group = mesh.get_group(dimension)
            found.append(groups.setdefault(group, _Group(group, mesh.device_type)))
    return found


_LENGTH = 1024
"""Of the first all-reduce, whatever is summed: those of processes that disagree fit together."""


def _reduced(
    values: torch.Tensor, groups: list[_Group], terms: Terms | None, may_wait: bool = True
) -> torch.Tensor:
    """Return new values, summed over each group in turn.

    `terms` is None while torch compiles: then nothing is compared.  Where the host must not wait
    for a device, the values are NaN if processes disagree.
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
    """The disagreements that this process has heard of in the groups so far.

    They are no error before the other groups have heard of them, as those wait for this process.
    """

    def __init__(self) -> None:
        self.descriptions: torch_agreement.Descriptions = {}
        self.all_agree: torch.Tensor | None = None
        """0-d on the device, where the host does not wait for it."""


def _may_wait(tensor: torch.Tensor) -> bool:
    return bool(tensor.device.type == "cpu")


def _agreed(
    part: torch.Tensor, group: Any, terms: Terms, heard: _Heard, may_wait: bool
) -> torch.Tensor:
    """Return the sum over a group, and note whether its processes agree."""
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
    """Sums of local values with a local backward: no communication."""

    @staticmethod
    def forward(values: torch.Tensor, groups: list[_Group], terms: Terms | None) -> torch.Tensor:
        return _reduced(values, groups, terms, may_wait=False).to(values.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        # The penalty is one number that all processes have, not one for each of them: the gradient
        # of the sum is that of each part.
        return gradient, None, None


if _LOSES_GRADIENTS:

    def _apart(*arguments: Any) -> Any:
        """Apply :class:`_Summed` in a graph break; ``fullgraph=True`` makes torch raise."""
        return _Summed.apply(*arguments)

    _apart = torch.compiler.disable(_apart)
