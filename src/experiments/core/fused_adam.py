"""Adam as one operation on all weights, in the place of optax's where the device has one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax

from experiments.core.conditions import chosen
from experiments.ops import adam

Tree = Any


@dataclass(frozen=True)
class FusedAdam:
    """`optax.scale_by_adam` and what stands around it in an optimizer, whose state it has.

    The results are those of optax up to rounding.
    """

    before: Sequence[optax.GradientTransformation]  # what changes the gradients
    b1: Any
    b2: Any
    eps: Any
    weight_decay: Any  # decoupled
    mask: Callable[[Tree], Tree] | None  # of the weights that decay; None: of all

    def is_usable(self, params: Tree) -> bool:
        """Whether there is such an operation for these."""
        leaves = jax.tree.leaves(params)
        return bool(leaves) and adam.is_usable(*leaves)

    def step(
        self,
        grads: Tree,
        state: tuple,
        params: Tree,
        rate: Callable[[tuple], Any],
        factor: Any,
        accept: jax.Array,
    ) -> tuple[Tree, tuple]:
        """(params, state) after an update, as they were unless `accept`.

        `rate` is the learning rate by path of a leaf, `factor` what the schedule makes of all.
        """
        first = []
        for transform, own in zip(self.before, state, strict=False):
            grads, new = transform.update(grads, own, params)
            first.append(chosen(accept, new, own))
        old, after = state[len(first)], state[len(first) + 1 :]
        count = optax.safe_increment(old.count)
        bias, bias_of_squares = 1 - self.b1**count, 1 - self.b2**count

        def settings(rate: Any, decays: bool) -> adam.Settings:
            return adam.Settings(
                b1=self.b1,
                rest1=1 - self.b1,
                b2=self.b2,
                rest2=1 - self.b2,
                correction=1 / bias_of_squares,
                eps=self.eps,
                size=rate * factor / bias,
                decay=rate * factor * self.weight_decay if decays else 0,
                accept=accept,
            )

        paths, form = jax.tree.flatten_with_path(params)
        rates = [rate(path) for path, _ in paths]
        decays = jax.tree.leaves(self.mask(params)) if self.mask else [True] * len(paths)
        pairs = [(id(r), decay) for r, decay in zip(rates, decays, strict=True)]  # few are unlike
        unlike = {pair: (r, pair[1]) for pair, r in zip(pairs, rates, strict=True)}
        kinds = [list(unlike).index(pair) for pair in pairs]
        trees = map(jax.tree.leaves, (params, grads, old.mu, old.nu))
        results = adam.step([settings(*kind) for kind in unlike.values()], kinds, *trees)
        params, mu, nu = (jax.tree.unflatten(form, leaves) for leaves in results)
        new = optax.ScaleByAdamState(chosen(accept, count, old.count), mu, nu)
        return params, (*first, new, *after)
