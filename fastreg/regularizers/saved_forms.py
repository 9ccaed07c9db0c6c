"""Names and saved forms of regularizers, those of Keras: get, serialize, deserialize."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

import numpy as np

from .._base import errors
from .._base.arguments import snake_case
from .._base.warnings import warn
from .base import Regularizer
from .elementwise import L1, L1L2, L2, Elementwise
from .orthogonal import OrthogonalRegularizer

_OWN = (L1, L2, L1L2, OrthogonalRegularizer, Regularizer)
_CLASSES: dict[str, type[Regularizer]] = {
    name: kind for kind in _OWN for name in (kind.__name__, snake_case(kind.__name__))
}


def _by_name(name: str, argument: str) -> Regularizer:
    if name == "l1_l2":
        # The name of Keras 2's function, whose defaults Keras 3 still documents; "l1l2" is the
        # class, whose defaults are zero.
        return L1L2(l1=0.01, l2=0.01)
    if name not in _CLASSES:
        known = (*_CLASSES, "l1_l2")
        raise ValueError(
            f"{argument} must name a regularizer, not {name!r}"
            f"{errors.suggestion(name, known)}; the names are {errors.listed(known, 20)}"
        )
    return _CLASSES[name]()


Kind = TypeVar("Kind")
Rule = TypeVar("Rule", bound=Callable[..., Any])


@overload
def get(identifier: None) -> None: ...
@overload
def get(identifier: str) -> Regularizer: ...
@overload
def get(identifier: Mapping[str, Any]) -> Any: ...
@overload
def get(identifier: type[Kind]) -> Kind: ...  # type: ignore[overload-overlap]
@overload
def get(identifier: Rule) -> Rule: ...
def get(identifier: Any) -> Any:
    """Return the regularizer that an argument stands for, as ``keras.regularizers.get`` does.

    Parameters
    ----------
    identifier : None, str, dict, class or callable
        None returns None.  A string is a name with default strengths: "l1", "l2", "l1l2" (no
        penalty, as in Keras), "l1_l2" (0.01 and 0.01), "orthogonal_regularizer".  A dict is a
        saved form, see :func:`deserialize`.  A class is instantiated.  Any other callable is
        returned as it is.

    Returns
    -------
    callable or None
        TypeError for other types, numbers for example; ValueError for an unknown name.

    Examples
    --------
    >>> get("l1")
    L1(l1=0.01)
    >>> get({"class_name": "L2", "config": {"l2": 0.5}})
    L2(l2=0.5)
    >>> get(None)
    """
    if identifier is None:
        return None
    if isinstance(identifier, str):
        return _by_name(identifier, "identifier")
    if isinstance(identifier, Mapping):
        return deserialize(identifier)
    result = identifier() if isinstance(identifier, type) else identifier
    if not callable(result):
        remedy = (
            "pass fastreg.regularizers.L1(...) or L2(...)"
            if isinstance(identifier, (int, float, np.generic))
            else "pass a name, a saved dict, a class, or a callable of one array"
        )
        raise TypeError(
            f"identifier must stand for a regularizer, not {errors.described(identifier)}; {remedy}"
        )
    return result


def converted(found: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Return an instance of a class of ``keras.regularizers`` as that of fastreg, else `found`."""
    if type(found).__module__.startswith("keras."):
        return deserialize(serialize(found), custom_objects)
    return found


def warn_of_nothing(given: Any, found: Any, label: str) -> None:
    """Warn of a name or class with strengths 0; those of an object can be set later."""
    if isinstance(given, (str, type)) and isinstance(found, Elementwise):
        if found._l1 or found._l2:
            return
        what = repr(given) if isinstance(given, str) else f"the class {given.__name__}"
        warn(
            f"{label} is {what}, whose strengths are 0, so it does nothing; pass an object with "
            'strengths, L1L2(l1=1e-5, l2=1e-4) for example, or "l1_l2" for 0.01 and 0.01'
        )


def saved_form(module: str | None, kind: str, config: Any, registered: str | None) -> Any:
    """Return the saved form of an object, with the keys that Keras writes."""
    return {"module": module, "class_name": kind, "config": config, "registered_name": registered}


def saved_instance(found: Any, argument: str) -> Any:
    """Return the saved form of an object of a user's class, which needs ``get_config``."""
    if not callable(getattr(found, "get_config", None)):
        raise TypeError(
            f"{argument} must offer get_config() to be saved, not be {errors.described(found)}; "
            "add that method to its class"
        )
    name = type(found).__name__
    return saved_form(None, name, found.get_config(), name)


@overload
def serialize(regularizer: None) -> None: ...
@overload
def serialize(regularizer: str) -> str: ...
@overload
def serialize(regularizer: Callable[..., Any]) -> dict[str, Any]: ...
def serialize(regularizer: Any) -> Any:
    """Return the saved form of a regularizer: plain Python objects, those that Keras writes.

    Parameters
    ----------
    regularizer : Regularizer, callable, str or None
        None and strings are returned as they are.  TypeError for classes, lambdas, partials and
        objects without ``get_config``; NotImplementedError for a :class:`Regularizer` without it.

    Returns
    -------
    dict, str or None
        ``{"module", "class_name", "config", "registered_name"}``.  The regularizers of this
        module are saved under "keras.regularizers", so Keras loads them.

    Examples
    --------
    >>> serialize(L1(0.5))["config"]
    {'l1': 0.5}
    >>> deserialize(serialize(L1(0.5)))
    L1(l1=0.5)
    """
    if regularizer is None or isinstance(regularizer, str):
        return regularizer
    kind = type(regularizer)
    if kind in _OWN:
        return saved_form("keras.regularizers", kind.__name__, regularizer.get_config(), None)
    if isinstance(regularizer, type):
        raise TypeError(
            f"regularizer must be an instance, not the class {regularizer.__qualname__}; pass "
            f"{regularizer.__name__}()"
        )
    if getattr(regularizer, "__name__", "") == "<lambda>":
        raise TypeError(
            "regularizer must have a name to be saved, not be a lambda; define it with def"
        )
    if kind.__name__ in ("function", "builtin_function_or_method"):
        name = _registered_name(regularizer) or regularizer.__name__
        return saved_form("builtins", kind.__name__, name, kind.__name__)
    if not hasattr(regularizer, "get_config"):
        raise TypeError(
            "regularizer must offer get_config() to be saved, not be "
            f"{errors.described(regularizer)}; derive its class from Regularizer"
        )
    module: str | None = kind.__module__
    registered: str | None = _registered_name(kind) or kind.__name__
    if module == "__main__":
        module = None  # no other script could import it
    elif kind.__module__.startswith("keras."):
        module, registered = "keras.regularizers", None
    return saved_form(module, kind.__name__, regularizer.get_config(), registered)


@overload
def deserialize(config: None, custom_objects: Mapping[str, Any] | None = None) -> None: ...
@overload
def deserialize(
    config: Mapping[str, Any] | str, custom_objects: Mapping[str, Any] | None = None
) -> Any: ...
def deserialize(config: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Return the regularizer of a saved form, one of Keras or :func:`serialize`.

    Parameters
    ----------
    config : dict, str or None
        ``{"class_name": ..., "config": {...}}``, with or without "module" and
        "registered_name"; or a name as for :func:`get`; None returns None.
    custom_objects : mapping, optional
        Classes and functions by name, for what is not of this module.  What was registered with
        Keras is found where Keras is loaded.

    Returns
    -------
    callable or None
        TypeError when `config` is of another type, or the saved arguments do not fit the class;
        ValueError for an unknown name.

    Examples
    --------
    >>> deserialize({"class_name": "l1l2", "config": {"l1": 0.5}})
    L1L2(l1=0.5, l2=0.0)
    >>> def ridge(w):
    ...     return float((w**2).sum())
    >>> deserialize(serialize(ridge), {"ridge": ridge}) is ridge
    True
    """
    custom = {} if custom_objects is None else custom_objects
    if config is None:
        return None
    if isinstance(config, str):
        return custom[config] if config in custom else _by_name(config, "config")
    if not isinstance(config, Mapping):
        raise TypeError(
            f"config must be a dict, a name or None, not {errors.described(config)}; pass what "
            "serialize(...) gave"
        )
    name = config.get("class_name")
    if not isinstance(name, str):
        raise ValueError(
            f"config must have a 'class_name', which is a string, not {errors.described(name)}; "
            "pass what serialize(...) gave"
        )
    arguments = config.get("config")
    if name in ("function", "builtin_function_or_method"):
        return _custom(arguments, custom)
    if name == "__lambda__":
        raise ValueError(
            "config holds a lambda as bytecode, which is not loaded; pass the function itself"
        )
    registered = config.get("registered_name")
    for key in (registered, name):
        if isinstance(key, str) and key in custom:
            found = custom[key]
            break
    else:
        # "fastreg>L1" is how Keras saves a regularizer where fastreg.keras is imported.
        if name in _CLASSES and (
            registered is None or ">" not in registered or registered.startswith("fastreg>")
        ):
            found = _CLASSES[name]
        else:
            found = _custom(registered or name, custom)
    if not isinstance(found, type):
        return found
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise TypeError(
            f"config['config'] must be a dict of arguments, not {errors.described(arguments)}"
        )
    make: Callable[[Any], Any] | None = getattr(found, "from_config", None)
    return found(**arguments) if make is None else make(dict(arguments))


def _custom(name: Any, custom: Mapping[str, Any]) -> Any:
    """Return a class or function of the user's."""
    if isinstance(name, str):
        if name in custom:
            return custom[name]
        saving = _keras_saving()
        found = None if saving is None else saving.get_registered_object(name)
        if found is not None:
            return found
    raise ValueError(
        f"config names {name!r}, which is not a regularizer of fastreg"
        f"{errors.suggestion(str(name), (*_CLASSES, *custom))}; pass "
        f"custom_objects={{{name!r}: ...}} or one of {errors.listed(_CLASSES, 20)}"
    )


def _keras_saving() -> Any:
    """Return ``keras.saving`` where Keras is loaded: only then can something be registered."""
    return getattr(sys.modules.get("keras"), "saving", None)


def _registered_name(found: Any) -> str | None:
    saving = _keras_saving()
    if saving is None:
        return None
    name = saving.get_registered_name(found)
    return name if isinstance(name, str) and ">" in name else None
