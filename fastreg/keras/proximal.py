"""An optimizer of Keras that takes the proximal step of penalties after each of its updates.

Contract
--------
- The step is part of the update of the optimizer inside: after it, before averages of the weights
  (``use_ema``), constraints, and what Keras does where no update is made (gradient accumulation, a
  loss scale that overflows).  So it stands in the place of ``_backend_update_step``, which is
  private to Keras: a Keras, or an optimizer, that does not call it is refused.
- Settings and variables are those of the optimizer inside; it has no variables of its own.
- Variables that an update does not touch, for they have no gradient, take no step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from .._base import arguments, errors
from .._base.warnings import warn
from ..penalties import callables
from ..penalties.rules import GivenRules, checked_rules, match, rule_name
from ..regularizers.elementwise import is_fused
from ._framework import backend, keras
from .strengths import strengths_of

_PLACE = "_backend_update_step"
_SETTINGS = (
    "weight_decay",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
)
_steps: Any = (
    import_module(f"{__package__}.steps_{backend}") if backend in ("torch", "jax") else None
)


@keras.saving.register_keras_serializable(package="fastreg")
class Proximal(keras.optimizers.Optimizer):  # type: ignore[misc]
    """An optimizer of Keras, after each update of which weights take a proximal step.

    L1 then makes exact zeros.  The step is that of the learning rate of the update.  Penalties that
    are here belong in no layer: they would count twice, which is warned of.

    Parameters
    ----------
    optimizer : keras.optimizers.Optimizer or str
        What updates the weights; it belongs to this object from then on.  A ``LossScaleOptimizer``
        goes around this object, as ``compile`` of a ``mixed_float16`` model does by itself.
    rules : mapping, or what ``fastreg.regularizers.get`` takes
        Globs over the paths of trainable variables (``variable.path``, "sequential/dense/kernel"),
        of which the first that matches wins, each with a regularizer or None; or one regularizer
        for all trainable variables, biases too.
    scale : float or keras.optimizers.schedules.LearningRateSchedule, optional
        A factor >= 0 of the penalties; a schedule gets the number of the step, as that of a
        learning rate does.
    name : str, optional

    Raises
    ------
    TypeError
        For what is no optimizer of Keras, and for a rule that has no proximal step.
    ValueError
        For an optimizer that is inside of another, or has others inside; and when the variables
        are known, for a rule that never wins.

    Examples
    --------
    >>> import keras
    >>> from fastreg.keras import L1, Proximal
    >>> layer = keras.layers.Dense(1, kernel_initializer="ones", name="last")
    >>> model = keras.Sequential([keras.Input((3,)), layer])
    >>> optimizer = Proximal(keras.optimizers.SGD(0.5), {"*kernel": L1(0.5)})
    >>> optimizer.apply([keras.ops.zeros(v.shape) for v in model.trainable_variables],
    ...                 model.trainable_variables)
    >>> bool(keras.ops.all(layer.kernel == 0.75))
    True
    """

    def __init__(
        self, optimizer: Any, rules: GivenRules, *, scale: Any = 1.0, name: str | None = None
    ) -> None:
        inner = _checked_optimizer(optimizer)
        checked = checked_rules(rules)
        for glob, rule in checked.by_glob.items():
            if not (rule is None or is_fused(rule) or callables.offers(rule, "prox")):
                label = "rules" if checked.for_all else f"rules[{glob!r}]"
                raise TypeError(
                    f"{label}, {rule_name(rule)}, offers no prox(w, step) of its own penalty; add "
                    "that method, or pass L1, L2, L1L2 or None"
                )
        if not isinstance(scale, keras.optimizers.schedules.LearningRateSchedule):
            scale = arguments.strength(scale, "scale")
        state = self.__dict__  # what Keras is not to track
        state["inner_optimizer"] = inner
        state["_rules"] = checked
        state["_rule_at"] = []
        state["_saved_paths"] = None
        state["_seen"] = {}
        state["scale"] = scale
        settings = {setting: getattr(inner, setting) for setting in _SETTINGS}
        super().__init__(learning_rate=0.0, name=name, **settings)
        inner.__dict__[_PLACE] = self._update

    @property
    def rules(self) -> dict[str, Any]:
        """The regularizers by glob.

        On PyTorch strengths that are set are seen at the next step; on JAX they are constants of
        the compiled step, for which there is `scale`.
        """
        return dict(self._rules.by_glob)

    @property
    def variables(self) -> Any:
        """Those of the optimizer inside."""
        return self.inner_optimizer.variables

    @property
    def iterations(self) -> Any:
        """Those of the optimizer inside."""
        return self.inner_optimizer.iterations

    @property
    def learning_rate(self) -> Any:
        """That of the optimizer inside; it may be set."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def _model_variables_moving_average(self) -> Any:
        return self.inner_optimizer._model_variables_moving_average

    def build(self, variables: Sequence[Any]) -> None:
        """Match the rules against the trainable variables, and build the optimizer inside."""
        variables = list(variables)
        inner = self.inner_optimizer
        names = self._names(variables)
        matched = match(names, self._rules, thing="trainable variable")[0]
        rules = [matched.get(name) for name in names]
        if inner.built:  # it has been in use; what it does not know it names
            inner._check_variables_are_known(variables)
        else:
            inner.build(variables)
        _warn_of_penalties_in_the_loss(variables, rules)
        state = self.__dict__
        state["_rule_at"] = rules
        state["_trainable_variables"] = variables
        state["_trainable_variables_indices"] = {
            self._var_key(variable): place for place, variable in enumerate(variables)
        }
        self.built = True

    def _names(self, variables: Sequence[Any]) -> list[str]:
        """Return the paths that rules are matched against.

        A model that Keras has loaded may lack the name of the model in its paths; the rules were
        written for those that it was saved with.
        """
        paths = [variable.path for variable in variables]
        saved = self._saved_paths
        if (
            saved is not None
            and len(saved) == len(paths)
            and all(
                f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")
                for one, other in zip(saved, paths, strict=True)
            )
        ):
            return list(saved)
        return paths

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """Update the variables by the optimizer inside, and take their proximal steps."""
        grads = list(grads)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            if grads and not self.built:
                self.build(trainable_variables)
            self._check_variables_are_known(trainable_variables)
        elif self.built:
            trainable_variables = self._trainable_variables
        self.inner_optimizer.apply(grads, trainable_variables)
        if grads and not self.gradient_accumulation_steps and not self._seen:
            raise RuntimeError(
                f"{type(self.inner_optimizer).__name__} has updated the variables without calling "
                f"{_PLACE} of Keras, so no proximal step was taken; derive the optimizer from "
                "keras.optimizers.Optimizer and redefine update_step alone, or call "
                "fastreg.attach({v.path: v ...}, rules).prox(learning_rate) yourself"
            )

    def apply_gradients(self, grads_and_vars: Any) -> Any:
        """Do what :meth:`apply` does for pairs, and return the number of steps."""
        super().apply_gradients(grads_and_vars)
        return self.inner_optimizer._iterations

    def _update(self, grads: Any, variables: Any, learning_rate: Any) -> None:
        """Do what the optimizer inside does for an update, and take the proximal steps."""
        inner = self.inner_optimizer
        getattr(type(inner), _PLACE)(inner, grads, variables, learning_rate)
        self._seen["update"] = True
        chosen = [(v, rule) for v in variables if (rule := self.rule_of(v)) is not None]
        if not chosen:
            return
        scale = self.scale if isinstance(self.scale, float) else self.scale(inner._iterations)
        _steps.take_proximal(chosen, learning_rate, scale)

    def rule_of(self, variable: Any) -> Any:
        """Return the regularizer of a variable, or None: of all, before ``build``."""
        place = self._trainable_variables_indices.get(self._var_key(variable))
        return None if place is None else self._rule_at[place]

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Do what it does for the optimizer inside."""
        self.inner_optimizer.exclude_from_weight_decay(var_list=var_list, var_names=var_names)

    def finalize_variable_values(self, var_list: Any) -> None:
        """Do what it does for the optimizer inside: averages become the weights."""
        self.inner_optimizer.finalize_variable_values(var_list)

    def set_weights(self, weights: Any) -> None:
        """Set the variables of the optimizer inside."""
        self.inner_optimizer.set_weights(weights)

    def save_own_variables(self, store: Any) -> None:
        """Save nothing: Keras saves the optimizer inside by itself."""

    def load_own_variables(self, store: Any) -> None:
        """Load nothing: Keras loads the optimizer inside by itself."""

    def get_config(self) -> dict[str, Any]:
        """Return plain objects from which :meth:`from_config` makes an optimizer without state."""
        by_glob = self._rules.by_glob
        save = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "inner_optimizer": save(self.inner_optimizer),
            # Pairs: the order of rules counts.
            "rules": save(by_glob["*"])
            if self._rules.for_all
            else [[glob, save(rule)] for glob, rule in by_glob.items()],
            "scale": save(self.scale),
            "paths": self._names(self._trainable_variables) if self.built else self._saved_paths,
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Proximal:
        """Make the optimizer that :meth:`get_config` was called on, without its state."""
        given = dict(config)

        def load(saved: Any) -> Any:
            return keras.saving.deserialize_keras_object(saved, custom_objects=custom_objects)

        inner, rules, scale = map(given.pop, ("inner_optimizer", "rules", "scale"))
        paths = given.pop("paths", None)
        if isinstance(rules, list):
            made: Any = {glob: load(rule) for glob, rule in rules}
        else:
            made = load(rules)
        optimizer = cls(load(inner), made, scale=load(scale), **given)
        optimizer.__dict__["_saved_paths"] = paths
        return optimizer


def _setting_of_inner(name: str) -> property:
    def get(self: Any) -> Any:
        return getattr(self.inner_optimizer, name)

    def set_(self: Any, value: Any) -> None:
        setattr(self.inner_optimizer, name, value)

    return property(get, set_, doc="That of the optimizer inside.")


for _name in _SETTINGS:
    setattr(Proximal, _name, _setting_of_inner(_name))
del _name
Proximal.__module__ = str(__package__)


def _checked_optimizer(given: Any) -> Any:
    if _steps is None:
        raise RuntimeError(
            f"Proximal has no proximal step on Keras' backend {backend!r}; set KERAS_BACKEND to "
            "torch or jax"
        )
    inner = keras.optimizers.get(given) if isinstance(given, str) else given
    if not isinstance(inner, keras.optimizers.Optimizer):
        raise TypeError(
            f"optimizer must be one of Keras or its name, not {errors.described(given)}; pass "
            "keras.optimizers.SGD(...) for example"
        )
    kind = type(inner).__name__
    if isinstance(inner, Proximal):
        raise ValueError("optimizer is a Proximal itself; give all rules to one")
    if hasattr(inner, "inner_optimizer"):
        raise ValueError(
            f"optimizer must be what updates the weights, not a {kind}, which has it inside; pass "
            f"{kind}(Proximal(optimizer.inner_optimizer, rules))"
        )
    if hasattr(inner, "optimizers"):
        raise ValueError(
            f"optimizer must be what updates the weights, not a {kind} of several; make each of "
            "them a Proximal"
        )
    if _PLACE in vars(inner):
        raise ValueError(f"optimizer is inside of another Proximal; pass a new {kind}(...)")
    if not hasattr(inner, _PLACE):
        raise RuntimeError(
            f"this version of fastreg has no proximal step for Keras {keras.__version__}, whose "
            f"optimizers have no {_PLACE}"
        )
    return inner


def _warn_of_penalties_in_the_loss(variables: Sequence[Any], rules: Sequence[Any]) -> None:
    twice = []
    for variable, rule in zip(variables, rules, strict=True):
        pairs = [strengths_of(one) for one in (getattr(variable, "regularizer", None), rule)]
        if None not in pairs and any(one and other for one, other in zip(*pairs, strict=True)):
            twice.append(variable.path)
    if twice:
        warn(
            f"the penalties of {errors.listed(twice)} are in the loss, by the regularizers of the "
            "layers, and in the rules of Proximal, so that they count twice; leave out one"
        )
