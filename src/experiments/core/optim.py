"""Optimizers: an optax rule between what every optimizer shares.

    gradients + L1 + L2 → clipping → rule → + decoupled weight decay → · (−learning rate)

The learning rate is applied outside of the rule, so every rule takes every schedule and a traced
learning rate. The penalties enter as gradients; reported losses are the data term alone.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.core.conditions import chosen, only_if
from experiments.core.config import check_arguments, locate
from experiments.core.fused_adam import FusedAdam
from experiments.core.transfer import check_patterns, matches, name_of, named
from experiments.errors import UserError
from experiments.types import Decay, NonNegative, Positive, PositiveInt

Tree = Any


@dataclass(frozen=True)
class Optimizer:
    """`transform` gives the descent direction; the step is −learning_rate · direction.

    Weights that one of the patterns of `learning_rates` stands for have that learning rate, the
    first if there are several.
    """

    transform: optax.GradientTransformation
    learning_rate: Any  # number, possibly traced
    learning_rates: Mapping[str, Any]  # the same by pattern of names; see experiments.core.transfer
    ema_decay: Any  # number, possibly traced, or None
    fused: FusedAdam | None = None  # the same as `transform` in one operation

    def init(self, params: Tree) -> Tree:
        """The optimizer state for `params`; raises `UserError` for a pattern of nothing."""
        check_patterns(self.learning_rates, named(params), "optim.learning_rates")
        return self.transform.init(params)

    def update(self, grads: Tree, state: Tree, params: Tree, factor: Any) -> tuple[Tree, Tree]:
        """(what to add to `params`, the new state); `factor` comes from the schedule."""
        directions, state = self.transform.update(grads, state, params)

        def step(path: tuple, direction: jax.Array) -> jax.Array:
            return -self.rate(path) * factor * direction

        return jax.tree_util.tree_map_with_path(step, directions), state

    def step(
        self, grads: Tree, state: Tree, params: Tree, factor: Any, due: Mapping[str, Any]
    ) -> "Step":
        """An update that may be taken, or only measured.

        Raises:
          UserError: single parts are `due` at some steps only, which takes an optimizer each.
        """
        if due:
            raise UserError(
                f"{' and '.join(due)} would be trained at some steps only, which takes an "
                "optimizer for each part: add optim@discriminator_optim=gan"
            )
        return Step(self, grads, state, params, factor)

    def rate(self, path: tuple) -> Any:
        """The learning rate of the leaf at a path, before the schedule's factor."""
        own = (r for p, r in self.learning_rates.items() if matches(name_of(path), p))
        return next(own, self.learning_rate)

    def average(self, ema: Tree, values: Tree, step: Any) -> Tree:
        """The exponential moving average; the decay warms up as (1 + t) / (10 + t)."""
        decay = jnp.minimum(self.ema_decay, (1.0 + step) / (10.0 + step))
        return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, ema, values)


@dataclass(frozen=True)
class Step:
    """An update of `params` by an optimizer."""

    optimizer: Optimizer
    grads: Tree
    state: Tree
    params: Tree
    factor: Any

    @functools.cached_property
    def _update(self) -> Callable[[Tree, Tree], tuple[Tree, Tree]]:
        """Traced once for its two uses."""
        return jax.jit(lambda p, s: self.optimizer.update(self.grads, s, p, self.factor))

    def updates(self) -> Tree:
        """What would be added to the parameters."""
        return self._update(self.params, self.state)[0]

    def taken_if(self, accept: jax.Array) -> tuple[Tree, Tree]:
        """(params, state) after the update if `accept`, else as they were."""
        fused = self.optimizer.fused
        if fused is not None and fused.is_usable(self.params):
            given = (self.grads, self.state, self.params)
            return fused.step(*given, self.optimizer.rate, self.factor, accept)

        def take(old: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
            updates, state = self._update(*old)
            return optax.apply_updates(old[0], updates), state

        return only_if(accept, take, (self.params, self.state))


@dataclass(frozen=True)
class Parted:
    """An optimizer of their own for some parts of a model; `rest` takes every other part.

    A part is a top-level entry of the parameters. The optimizer state is a dict by part.
    """

    own: Mapping[str, Optimizer]
    rest: Optimizer

    @property
    def learning_rate(self) -> Any:
        """That of `rest`."""
        return self.rest.learning_rate

    def init(self, params: Tree) -> Tree:
        """The optimizer state of each part of `params`."""
        return {part: self._of(part).init(values) for part, values in params.items()}

    def step(
        self, grads: Tree, state: Tree, params: Tree, factor: Any, due: Mapping[str, Any]
    ) -> "PartedStep":
        """An update that may be taken, or only measured; `due` says of some parts whether."""
        steps = {
            part: self._of(part).step(grads[part], state[part], params[part], factor, {})
            for part in params
        }
        return PartedStep(steps, due)

    def average(self, ema: Tree, values: Tree, step: Any) -> Tree:
        """The exponential moving average that `rest` asks for."""
        return self.rest.average(ema, values, step)

    def _of(self, part: str) -> Optimizer:
        return self.own.get(part, self.rest)


@dataclass(frozen=True)
class PartedStep:
    """An update of every part; those in `due` stay as they are unless it is True for them."""

    steps: Mapping[str, Step]
    due: Mapping[str, Any]

    def updates(self) -> Tree:
        """What would be added to the parameters."""
        updates = {part: step.updates() for part, step in self.steps.items()}
        still = {part: jax.tree.map(jnp.zeros_like, updates[part]) for part in self.due}
        return updates | {p: chosen(due, updates[p], still[p]) for p, due in self.due.items()}

    def taken_if(self, accept: jax.Array) -> tuple[Tree, Tree]:
        """(params, state) after the update if `accept`, else as they were."""
        taken = {p: s.taken_if(accept & self.due.get(p, True)) for p, s in self.steps.items()}
        return {p: new[0] for p, new in taken.items()}, {p: new[1] for p, new in taken.items()}


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
    """Puts an optimizer together; the keys of every file in `conf/optim`.

    Args:
      rule: dotted name of an optax transformation that maps gradients to a descent direction;
        `arguments` are its own.
      learning_rate: size of a step before the schedule's factor.
      learning_rates: the same for some weights, by pattern of their names (`output: 0.01`).
      weight_decay: decoupled decay λ: w ← w − learning rate · λ w (Loshchilov & Hutter 2019).
      l1, l2: penalties l1 · Σ|w| and l2 · ½Σw², added to the gradient.
      regularize_all: also decay and penalise biases and normalisation parameters.
      clip_norm: largest global gradient norm; clip_value: largest single component.
      trust_ratio: scale each layer's step by ‖w‖/‖step‖, after the weight decay (LAMB).
      accumulate: batches whose gradients are averaged before each update.
      ema_decay: keep an exponential moving average of the weights and evaluate with it.
    """
    mask = None if regularize_all else regularized
    chain = []
    if not _off(l1) or not _off(l2):
        chain.append(_penalty(l1, l2, mask))
    if clip_norm is not None:
        chain.append(optax.clip_by_global_norm(clip_norm))
    if clip_value is not None:
        chain.append(optax.clip(clip_value))
    function = locate(rule)
    check_arguments(function, {k: v for k, v in arguments.items() if _plain(v)}, "optim")
    fused, plain = None, not trust_ratio and accumulate == 1
    if plain and function is optax.scale_by_adam and set(arguments) == {"b1", "b2", "eps"}:
        fused = FusedAdam(chain.copy(), **arguments, weight_decay=weight_decay, mask=mask)
    chain.append(function(**arguments))
    if not _off(weight_decay):
        chain.append(optax.add_decayed_weights(weight_decay, mask))
    if trust_ratio:
        chain.append(optax.scale_by_trust_ratio())
    transform = optax.chain(*chain)
    if accumulate > 1:
        transform = optax.MultiSteps(transform, accumulate).gradient_transformation()
    return Optimizer(transform, learning_rate, learning_rates or {}, ema_decay, fused)


def regularized(params: Tree) -> Tree:
    """True for weights, False for biases and the scales of normalisations (by their names)."""

    def is_weight(path: tuple, _) -> bool:
        return jax.tree_util.keystr(path[-1:], simple=True) not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(is_weight, params)


def sgd() -> optax.GradientTransformation:
    """The gradient itself."""
    return optax.identity()


def momentum(momentum: Decay, nesterov: bool) -> optax.GradientTransformation:
    """v ← μv + g; the direction is v, or g + μv with Nesterov's look-ahead (Sutskever 2013)."""
    return optax.trace(momentum, nesterov)


def muon(
    momentum: Decay, newton_schulz_steps: PositiveInt, b1: Decay, b2: Decay, eps: Positive
) -> optax.GradientTransformation:
    """Orthogonalised momentum for matrices and convolution kernels, Adam for the rest.

    Jordan et al. 2024; updates are scaled to Adam's typical size, 0.2 √max(rows, columns) (Liu et
    al. 2025, arXiv:2502.16982, eq. 4), so that one learning rate serves both parts.
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


def _penalty(l1: Any, l2: Any, mask: Any) -> optax.GradientTransformation:
    """Adds the gradient of l1 · Σ|w| + l2 · ½Σw²."""

    def update(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        return jax.tree.map(lambda g, w: g + l1 * jnp.sign(w) + l2 * w, grads, params), state

    penalty = optax.GradientTransformation(lambda _: optax.EmptyState(), update)
    return penalty if mask is None else optax.masked(penalty, mask)


def _plain(value: Any) -> bool:
    """A value out of a config, not a number that takes its place in a program."""
    return not isinstance(value, jax.Array | np.generic)


def _off(value: Any) -> bool:
    """A number that is exactly 0 in the config; a traced one is on."""
    return isinstance(value, int | float) and value == 0
