"""Gradient checking: the gradient of a training step against differences of its loss.

The loss is that of the objective on one batch, as a step computes it: normalisation by the batch,
the noise of one key. All is computed in float64, by the code that trains but for the kernels of the
C library, which know float32 alone: the training's own gradient is compared with XLA's.

References:
  Moré & Wild 2011, "Estimating computational noise" (of the rounding); Goodfellow et al. 2016,
  "Deep learning", section 11.5.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.core.experiment import Experiment, Tree
from experiments.core.params import merged
from experiments.core.transfer import named, split
from experiments.ops.backend import xla_only
from experiments.types import NonNegative, Positive, PositiveInt, Seed

CHUNK = 64  # most points at which the loss is computed in one dispatch
FEWER = 10.0  # from one step of the differences to the next
SETTLED = 1e-3  # relative difference of two steps that agree
LEVEL = 1e-11  # relative rounding of a loss from which on a part of it is not computed in float64
COARSE = (1e-2, 1e-2, 2)  # step, tolerance and steps where that is so
NEARLY_ZERO = 1e-5  # of the whole gradient's norm: too small to be compared in float32
LONG = 60.0  # seconds from which on a way to fewer is said
OF_FLOAT32 = 1e-2  # largest error of an implementation in float32


@dataclass(frozen=True)
class GradCheck:
    """The keys of `gradcheck`.

    Args:
      examples: of the batch, drawn from the training split; text that is read in order keeps its
        own batch size.
      coordinates: entries that are checked, as many of each array of parameters (null: all).
      seed: of examples and coordinates; that of the run decides on weights and noise.
      epoch: at which the loss is taken, for those that change with it.
      jitter: standard deviation of what is added to the initial weights, so that none is exactly
        0, where rectifiers have their kink and scales hide what is before them.
      step: the largest of the differences.
      tolerance: largest relative error ‖a − n‖ / (‖a‖ + ‖n‖) of an array.
    """

    examples: PositiveInt
    coordinates: PositiveInt | None
    seed: Seed
    epoch: NonNegative
    jitter: NonNegative
    step: Positive
    tolerance: Positive


@dataclass(frozen=True)
class Row:
    """An array of parameters: its analytic gradient a against the differences n.

    Attributes:
      name: of the array; size: of it; checked: the entries that were looked at.
      kinks: those where the slopes to the left and to the right differ. There any number between
        the two counts as n.
      error: ‖a − n‖ / (‖a‖ + ‖n‖); 0 where the difference is no more than rounding.
      index, analytic, numeric: the entry with the largest difference.
      implementation: the relative error of the training's own gradient, in float32, against that
        of XLA's operations; None where it is too small to tell.
      passed: whether both errors are small enough.
    """

    name: str
    size: int
    checked: int
    kinks: int
    error: float
    index: tuple[int, ...]
    analytic: float
    numeric: float
    implementation: float | None
    passed: bool


class Report(NamedTuple):
    """The rows, and in what they were computed."""

    rows: list[Row]
    rounding: float  # of the loss, relative
    step: float
    tolerance: float

    @property
    def is_coarse(self) -> bool:
        """True if a part of the loss is not computed in float64."""
        return self.rounding > LEVEL


def check_gradients(
    experiment: Experiment,
    weights: tuple[Tree, Tree],
    batch: Mapping[str, Any],
    key: jax.Array,
    wanted: GradCheck,
    progress: Callable[[str], None] = lambda line: None,
) -> Report:
    """Compare the gradient at some weights with differences, for each array that is trained.

    Args:
      weights: (params, model_state).
      batch: as stored; it is prepared as in training.
      key: of the run, from which the noise follows.
      progress: called with a line on what comes next.
    """
    rng = np.random.default_rng(wanted.seed)
    params, model_state = jax.tree.map(np.asarray, weights)
    params = jax.tree.map(
        lambda a: (a + wanted.jitter * rng.standard_normal(a.shape)).astype(a.dtype), params
    )
    step = np.int32(wanted.epoch * experiment.steps_per_epoch)
    batch = experiment.prepare(batch, {}, key, train=True)
    trained, frozen = split(params, experiment.frozen)
    parts = (trained, frozen, model_state)
    progress("gradient in float32")
    implementations = _implementations(experiment, parts, batch, key, step)
    with jax.enable_x64(True):
        wide = jax.tree.map(_widened, parts)
        progress("rounding of the loss in float64")
        loss = Loss(experiment, wide, jax.tree.map(_widened, batch), key, step)
        rounding = loss.rounding(rng)
        size, tolerance, count = wanted.step, wanted.tolerance, 4
        if rounding > LEVEL:
            size, tolerance, count = COARSE
        analytic, rows = loss.gradient(), []
        each = max((wanted.coordinates or loss.vector.size) // len(analytic), 1)
        arrays, done, begun = named(wide[0]), 0, time.monotonic()
        counts = {
            name: min(each, array.size) if wanted.coordinates else array.size
            for name, array in arrays.items()
        }
        for number, (name, array) in enumerate(arrays.items(), 1):
            few = counts[name]
            progress(_progress(name, number, counts, done, time.monotonic() - begun))
            done += few
            entries = np.sort(rng.choice(array.size, few, replace=False))
            a = np.asarray(analytic[name]).ravel()[entries]
            along = loss.along(name, entries, min(each, CHUNK))
            n, kinks, noise = _differences(along, a, size, count, rounding)
            worst = int(np.argmax(np.nan_to_num(np.abs(a - n), nan=np.inf)))
            error, other = relative_error(a, n), implementations[name]
            if error > tolerance and np.linalg.norm(a - n) <= np.linalg.norm(noise):
                error = 0.0
            passed = error <= tolerance and (other is None or other <= OF_FLOAT32)
            index = tuple(int(i) for i in np.unravel_index(entries[worst], array.shape))
            found = (error, index, float(a[worst]), float(n[worst]), other, passed)
            rows.append(Row(name, array.size, len(entries), int(kinks.sum()), *found))
    return Report(rows, rounding, size, tolerance)


def _progress(name: str, number: int, counts: Mapping[str, int], done: int, seconds: float) -> str:
    """Return a line on the next array: its name, its number, and about how long the rest takes."""
    line = f"array {number} of {len(counts)}  {name}: {counts[name]:,} entries"
    if not done:
        return line
    left = seconds / done * (sum(counts.values()) - done)
    hint = "; fewer gradcheck.coordinates= are quicker" if left > LONG else ""
    return f"{line}  about {left:.0f} s left{hint}"


def relative_error(a: Any, b: Any) -> float:
    """Return ‖a − b‖ / (‖a‖ + ‖b‖); 0 where both are 0."""
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    both = np.linalg.norm(a) + np.linalg.norm(b)
    return float(np.linalg.norm(a - b) / both) if both != 0 else 0.0


class Loss:
    """The loss of a batch as a function of the trained parameters, in float64.

    Of an adversarial model each part descends on a loss of its own; its gradient is that alone.
    """

    def __init__(
        self,
        experiment: Experiment,
        weights: tuple[Tree, Tree, Tree],
        batch: dict,
        key: jax.Array,
        step: Any,
    ):
        trained, frozen, model_state = weights
        parts = [part for part in ("generator", "discriminator") if part in trained]
        self.trained = trained
        self.names = [f"{part}_loss" for part in parts] or ["loss"]
        self.starts: dict[str, int] = {}
        start = 0
        for name, array in named(trained).items():
            self.starts[name], start = start, start + array.size
        self.vector, unravel = ravel_pytree(trained)

        def means(vector: jax.Array) -> dict[str, jax.Array]:
            params = merged(unravel(vector), frozen)
            model = experiment.trained_model({}, params, model_state, train=True)
            return experiment.means(model, step, batch, {}, key)

        def at(entry, distance):  # the losses where one entry is moved
            found = means(self.vector.at[entry].add(distance))
            return jnp.stack([found[name].astype(jnp.float64) for name in self.names])

        def gradient(vector):
            return unravel(jax.grad(lambda v: means(v)["loss"])(vector))

        def on_line(distance, direction):
            return means(self.vector + distance * direction)[self.names[0]].astype(jnp.float64)

        self._gradient = jax.jit(gradient)
        self._at = jax.jit(lambda entries, by: jax.lax.map(lambda entry: at(entry, by), entries))
        self._line = jax.jit(lambda by, d: jax.lax.map(lambda one: on_line(one, d), by))

    def gradient(self) -> dict[str, jax.Array]:
        """Return the gradient of each array, by name."""
        return named(self._gradient(self.vector))

    def rounding(self, rng: np.random.Generator) -> float:
        """Return the relative rounding error of the loss, from its values on a short line."""
        direction = rng.standard_normal(self.vector.shape)
        near = np.arange(9) * 1e-12
        values = np.asarray(self._line(near, direction / np.linalg.norm(direction)))
        # third differences of a smooth function vanish; of rounding they have 20 times its variance
        rest = np.diff(values, 3) / math.sqrt(20)
        error = max(np.sqrt(np.mean(rest**2)), np.finfo(np.float64).eps * abs(values[0]))
        return float(error / max(abs(values[0]), 1e-30))

    def along(
        self, name: str, entries: np.ndarray, chunk: int
    ) -> Callable[[np.ndarray, Any], np.ndarray]:
        """Return the function of (chosen entries, distance) to the loss there, [chosen]."""
        own = f"{name.partition('.')[0]}_loss"
        of = self.names.index(own) if own in self.names else 0

        def values(chosen: np.ndarray, distance: float) -> np.ndarray:
            places = self.starts[name] + entries[chosen]
            found = [  # of one length, for one compilation
                self._at(np.resize(places[first : first + chunk], chunk), distance)
                for first in range(0, len(places), chunk)
            ]
            return np.concatenate(found)[: len(places), of]

        return values


def _differences(
    loss: Callable, analytic: np.ndarray, size: float, count: int, rounding: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the slopes of a loss along some entries, where there are kinks, and their rounding.

    Steps shrink until two of them agree and the slopes to both sides approach each other. Where
    they never do there is a kink; the slope is then what is nearest to `analytic` between the two.
    """
    here = loss(np.arange(1), 0.0)[0]
    slope, kinks, noise = (np.zeros(len(analytic), kind) for kind in (float, bool, float))
    left_over, before = np.arange(len(analytic)), None
    for number in range(count):
        h = size / FEWER**number
        chosen = left_over
        after, ahead = loss(chosen, h), loss(chosen, -h)
        right, left = (after - here) / h, (here - ahead) / h
        centre, gap = (after - ahead) / (2 * h), np.abs(right - left)
        noise[chosen] = 4 * rounding * abs(here) / h
        low, high = np.minimum(right, left), np.maximum(right, left)
        slope[chosen] = np.clip(analytic[chosen], low, high)  # unless it settles
        kinks[chosen] = True
        if before is not None:
            known, old_gap = before
            same = np.abs(centre - known) <= SETTLED * np.abs(centre) + noise[chosen]
            closing = gap <= old_gap / 2 + 2 * noise[chosen]
            settled = same & closing
            slope[chosen[settled]] = centre[settled]
            kinks[chosen[settled]] = False
            left_over, centre, gap = chosen[~settled], centre[~settled], gap[~settled]
        before = centre, gap
        if not len(left_over):
            break
    return slope, kinks, noise


def _implementations(
    experiment: Experiment, parts: tuple, batch: dict, key: jax.Array, step: Any
) -> dict[str, float | None]:
    """Return the relative error of each array's gradient as it is trained, against XLA's own."""
    trained, frozen, model_state = parts

    def gradient() -> Callable:  # a new function each: JAX would not trace one anew
        def loss(trained: Tree) -> jax.Array:
            params = merged(trained, frozen)
            model = experiment.trained_model({}, params, model_state, train=True)
            return experiment.means(model, step, batch, {}, key)["loss"]

        return jax.jit(jax.grad(loss))

    own = jax.device_get(gradient()(trained))
    with xla_only():
        exact = jax.device_get(gradient()(trained))
    least = NEARLY_ZERO * math.sqrt(sum(float(np.sum(g * g)) for g in jax.tree.leaves(exact)))
    low = jnp.issubdtype(experiment.precision, jnp.bfloat16)
    return {
        name: None if low or np.linalg.norm(a) <= least else relative_error(a, b)
        for (name, a), b in zip(named(exact).items(), named(own).values(), strict=True)
    }


def _widened(array: Any) -> Any:
    array = jnp.asarray(array)
    return array.astype(jnp.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array
