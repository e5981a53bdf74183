"""Optimizers: an optax rule, and around it the settings that every optimizer has.

    gradients + L1 + L2 → clipping → rule → + decoupled weight decay → · (−learning rate)

The learning rate is applied outside of the rule, so every rule takes every schedule and a traced
learning rate. The penalties enter as gradients; reported losses are the data term alone.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.core.config import check_arguments, locate, mismatch
from experiments.core.params import chosen, only_if
from experiments.core.transfer import check_patterns, matches, name_of, named
from experiments.errors import UserError
from experiments.types import Decay, NonNegative, Positive, PositiveInt, is_off

Tree = Any

BOUNDS: dict[str, Any] = {
    **dict.fromkeys(("b1", "b2", "b3", "rho", "decay"), Decay),
    "eps": Positive,
    **dict.fromkeys(("eps_root", "initial_accumulator_value", "initial_scale"), NonNegative),
}
"""The values that the papers allow for arguments of optax's rules, by name."""


@dataclass(frozen=True)
class Optimizer:
    """An optimizer of a whole tree of parameters.

    Args:
      transform: gives the descent direction; the step is −learning_rate · direction.
      learning_rate: a number, possibly traced.
      learning_rates: the same for some weights, by pattern of their names as in
        `experiments.core.transfer`; of several patterns that match a name the first counts.
      ema_decay: decay of the weights' average, a number, possibly traced, or None.
    """

    transform: optax.GradientTransformation
    learning_rate: Any
    learning_rates: Mapping[str, Any]
    ema_decay: Any

    def init(self, params: Tree) -> Tree:
        """Return the optimizer state for `params`.

        Raises:
          UserError: a pattern of `learning_rates` matches no name.
        """
        check_patterns(self.learning_rates, named(params), "optim.learning_rates")
        return self.transform.init(params)

    @functools.cached_property
    def update(self) -> Callable[..., tuple[Tree, Tree]]:
        """The function `update(grads, state, params, factor) -> (updates, state)`, as in optax.

        `factor` comes from the schedule. The function is jitted so that it is traced once where a
        training step calls it twice.
        """
        return jax.jit(self._update)

    def step(
        self, grads: Tree, state: Tree, params: Tree, factor: Any, accept: jax.Array
    ) -> tuple[Tree, Tree]:
        """Return (params, state) after the update if `accept`, else as they were."""

        def updated(old: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
            params, state = old
            updates, state = self.update(grads, state, params, factor)
            return optax.apply_updates(params, updates), state

        return only_if(accept, updated, (params, state))

    def average(self, ema: Tree, values: Tree, step: Any) -> Tree:
        """Return the exponential moving average; its decay warms up as (1 + t) / (10 + t)."""
        decay = jnp.minimum(self.ema_decay, (1.0 + step) / (10.0 + step))
        return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, ema, values)

    def _update(self, grads: Tree, state: Tree, params: Tree, factor: Any) -> tuple[Tree, Tree]:
        directions, state = self.transform.update(grads, state, params)

        def scaled(path: tuple, direction: jax.Array) -> jax.Array:
            own = (r for p, r in self.learning_rates.items() if matches(name_of(path), p))
            return -next(own, self.learning_rate) * factor * direction

        return jax.tree_util.tree_map_with_path(scaled, directions), state


@dataclass(frozen=True)
class PartitionedOptimizer:
    """An optimizer for each part of a model, used like an `Optimizer`.

    A part is a top-level entry of the parameters, gradients and optimizer state.

    Args:
      by_part: optimizers of some parts, by name.
      default: the optimizer of every other part.
      due: whether this step trains a part, traced, by name; a part that is not named is trained.
    """

    by_part: Mapping[str, Optimizer]
    default: Optimizer
    due: Mapping[str, jax.Array]

    @property
    def learning_rate(self) -> Any:
        """The learning rate that is reported: that of `default`."""
        return self.default.learning_rate

    def init(self, params: Tree) -> Tree:
        """Return the optimizer state of each part of `params`."""
        return {part: self._of(part).init(values) for part, values in params.items()}

    def update(self, grads: Tree, state: Tree, params: Tree, factor: Any) -> tuple[Tree, Tree]:
        """Return (updates, state); those of a part that is not due are 0 and the old one."""
        results = {
            part: self._of(part).update(grads[part], state[part], values, factor)
            for part, values in params.items()
        }
        for part, due in self.due.items():
            unchanged = (jax.tree.map(jnp.zeros_like, grads[part]), state[part])
            results[part] = chosen(due, results[part], unchanged)
        return _unzipped(results)

    def step(
        self, grads: Tree, state: Tree, params: Tree, factor: Any, accept: jax.Array
    ) -> tuple[Tree, Tree]:
        """Return (params, state) after the update if `accept`, else as they were."""
        results = {}
        for part, values in params.items():
            both = accept & self.due.get(part, True)
            results[part] = self._of(part).step(grads[part], state[part], values, factor, both)
        return _unzipped(results)

    def average(self, ema: Tree, values: Tree, step: Any) -> Tree:
        """Return the exponential moving average that `default` asks for."""
        return self.default.average(ema, values, step)

    def _of(self, part: str) -> Optimizer:
        return self.by_part.get(part, self.default)


def optimizer(
    rule: str,
    *,
    learning_rate: NonNegative,
    learning_rates: dict[str, NonNegative] | None,
    weight_decay: NonNegative,
    l1: NonNegative,
    l2: NonNegative,
    regularize_all: bool,
    clip_norm: Positive | None,
    clip_value: Positive | None,
    trust_ratio: bool,
    accumulate: PositiveInt,
    ema_decay: Decay | None,
    **arguments: Any,
) -> Optimizer:
    """Build an optimizer; its arguments are the keys of every file in `conf/optim`.

    Args:
      rule: dotted name of an optax transformation that maps gradients to a descent direction;
        `arguments` are its own.
      learning_rate: size of a step before the schedule's factor.
      learning_rates: the same for some weights, by pattern of their names (`output: 0.01`).
      weight_decay: decoupled decay λ: w ← w − learning rate · λ w (Loshchilov & Hutter 2019).
      l1, l2: penalties l1 · Σ|w| and l2 · ½Σw², added to the gradient.
      regularize_all: also decay and penalise biases and normalisation parameters.
      clip_norm: largest global gradient norm.
      clip_value: largest single component of the gradient.
      trust_ratio: scale each layer's step by ‖w‖/‖step‖, after the weight decay (LAMB).
      accumulate: batches whose gradients are averaged before each update.
      ema_decay: of an exponential moving average of the weights, which are evaluated; None: none.
    """
    mask = None if regularize_all else regularized
    chain = []
    if not is_off(l1) or not is_off(l2):
        penalty = optax.stateless_with_tree_map(lambda g, w: g + l1 * jnp.sign(w) + l2 * w)
        chain.append(penalty if mask is None else optax.masked(penalty, mask))
    if clip_norm is not None:
        chain.append(optax.clip_by_global_norm(clip_norm))
    if clip_value is not None:
        chain.append(optax.clip(clip_value))
    chain.append(locate(rule)(**arguments))
    if not is_off(weight_decay):
        chain.append(optax.add_decayed_weights(weight_decay, mask))
    if trust_ratio:
        chain.append(optax.scale_by_trust_ratio())
    transform = optax.chain(*chain)
    if accumulate > 1:
        transform = optax.MultiSteps(transform, accumulate).gradient_transformation()
    return Optimizer(transform, learning_rate, learning_rates or {}, ema_decay)


def check_rule(arguments: Mapping[str, Any], path: str) -> None:
    """Check the arguments of an optimizer's rule by its signature, and those of optax by bounds.

    optax itself takes every number and trains with it, to a loss that is not finite at worst.
    """
    try:
        rule = locate(arguments["rule"])
    except UserError as error:
        raise UserError(f"{path}.rule: {error}") from error
    own = {k: v for k, v in arguments.items() if k not in inspect.signature(optimizer).parameters}
    bounds = BOUNDS if rule.__module__.partition(".")[0] == "optax" else {}
    for name, value in own.items():
        if name in bounds and (complaint := mismatch(value, bounds[name])):
            raise UserError(f"{path}.{name}={value}: must be {complaint}")
    check_arguments(rule, own, path)


optimizer.check_config = check_rule  # type: ignore[attr-defined]


def regularized(params: Tree) -> Tree:
    """Return True for weights, False for biases and scales of normalisations, by their names."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: name_of(path[-1:]) not in ("bias", "scale"), params
    )


def sgd() -> optax.GradientTransformation:
    """Return the rule whose direction is the gradient itself."""
    return optax.identity()


def momentum(momentum: Decay, nesterov: bool) -> optax.GradientTransformation:
    """Return the rule v ← μv + g with direction v, or g + μv with Nesterov's look-ahead.

    References:
      Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning".
    """
    return optax.trace(momentum, nesterov)


def muon(
    momentum: Decay, newton_schulz_steps: PositiveInt, b1: Decay, b2: Decay, eps: Positive
) -> optax.GradientTransformation:
    """Return orthogonalised momentum for matrices and convolution kernels, Adam for the rest.

    Updates are scaled to Adam's typical size, 0.2 √max(rows, columns), so that one learning rate
    serves both.

    References:
      Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Liu et al.
      2025, arXiv:2502.16982, eq. 4.
    """

    def dimensions(params: Tree) -> Tree:
        def numbers(leaf):
            if leaf.ndim < 2:
                return None
            return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

        return jax.tree.map(numbers, params)

    rule = optax.contrib.muon(
        1.0,
        beta=momentum,
        ns_steps=newton_schulz_steps,
        adam_b1=b1,
        adam_b2=b2,
        eps=eps,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=dimensions,
    )
    return optax.chain(rule, optax.scale(-1.0))  # optax's already points downhill


def _unzipped(pairs: Mapping[str, tuple[Tree, Tree]]) -> tuple[Tree, Tree]:
    """Return a dict of the first and one of the second entries."""
    return {k: pair[0] for k, pair in pairs.items()}, {k: pair[1] for k, pair in pairs.items()}
