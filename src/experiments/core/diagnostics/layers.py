"""What goes on in each layer at a training step: its outputs, its gradient and its update.

The norm of the whole gradient can mislead: it is that of the layers with the largest. The numbers
of a layer say whether it learns.

References:
  Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks"
  (outputs and gradients by layer); Lu et al. 2019, "Dying ReLU and initialization" (dead units).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import get_opaque_trace_state

from experiments.core.experiment import Experiment, State, Tree
from experiments.core.params import merged, norm
from experiments.core.rng import stream
from experiments.core.transfer import named, split
from experiments.models.resnet import Repeated

BINS = 40  # of a histogram
MOST = 1 << 14  # values of a layer that are counted in one, evenly spaced
PREFIX = "diagnostics"  # of the names of all numbers

Histogram = tuple[jax.Array, jax.Array]  # counts [bins] and the edges [bins + 1]
Seen = Callable[[str, nnx.Module, Any, jax.Array], jax.Array]  # see `watch`


def diagnose(
    experiment: Experiment,
    state: State,
    batch: Mapping[str, jax.Array],
    hparams: Mapping[str, Any],
    key: jax.Array,
) -> tuple[dict[str, jax.Array], dict[str, Histogram]]:
    """Return scalars and histograms of each layer at the next training step on a batch; pure.

    The names are `diagnostics/<layer>/` and, where the layer has such:

    - `output_mean`, `output_std`: of all outputs, before an activation that is no layer itself;
      a layer that is called several times counts the first time. The histogram is `outputs`.
    - `dead_units`: the share of its units whose incoming weights get no gradient from any example:
      behind a rectifier those that are 0 for all of them.
    - `grad_norm`, `update_norm`, `weight_norm`: Euclidean norms, of all arrays of the layer.
    - `update_ratio`: of the norms of update and weights; near 1e-3 where training goes well.

    Args:
      state: the parameters, the statistics and what the optimizer remembers.
      batch: as stored.
      key: of the run.
    """
    batch = experiment.prepare(batch, hparams, stream(key, "augment", state.step), train=True)
    trained, frozen = split(state.params, experiment.frozen)

    def loss_of(trained: Tree) -> tuple[jax.Array, dict[str, jax.Array]]:
        weights = merged(trained, frozen), state.model_state
        model = experiment.trained_model(hparams, *weights, train=True)
        outputs, found = record_outputs(model)
        loops.update(found)
        return experiment.means(model, state.step, batch, hparams, key)["loss"], outputs

    loops: dict[str, nnx.Module] = {}
    grads, outputs = jax.grad(loss_of, has_aux=True)(trained)
    factor = experiment.learning_rate_factor(hparams, state.step, experiment.total_steps)
    optimizer = experiment.optimizer(hparams)
    updates, _ = optimizer.update(grads, state.opt_state, trained, factor)
    scalars: dict[str, jax.Array] = {}
    histograms: dict[str, Histogram] = {}
    for layer, output in outputs.items():
        output = output.astype(jnp.float32)
        scalars[f"{layer}/output_mean"] = jnp.mean(output)
        scalars[f"{layer}/output_std"] = jnp.std(output)
        histograms[f"{layer}/outputs"] = histogram(output)
    gradients_of, updates_of = by_layer(grads), by_layer(updates)
    for layer, weights in by_layer(trained).items():
        loop = next((m for name, m in loops.items() if f"{layer}.".startswith(f"{name}.")), None)
        kernel = gradients_of[layer].get("kernel")
        if kernel is not None and kernel.ndim > 1 and isinstance(loop, Repeated | None):
            scalars[f"{layer}/dead_units"] = dead_units(kernel, stacked=loop is not None)
        update, weight = norm(updates_of[layer]), norm(weights)
        scalars[f"{layer}/grad_norm"] = norm(gradients_of[layer])
        scalars[f"{layer}/update_norm"], scalars[f"{layer}/weight_norm"] = update, weight
        scalars[f"{layer}/update_ratio"] = update / jnp.where(weight > 0, weight, jnp.inf)
    return _prefixed(scalars), _prefixed(histograms)


def record_outputs(
    model: nnx.Module,
) -> tuple[dict[str, jax.Array], dict[str, nnx.Module]]:
    """Let a model's layers write what they return first into a dict, by name; inside a trace.

    Layers in a loop, whose values exist in it alone, write nothing. The second dict has modules
    that compute several layers in a loop, by the name of the looped one.
    """
    outputs: dict[str, jax.Array] = {}

    def seen(name: str, layer: nnx.Module, given: Any, output: jax.Array) -> jax.Array:
        outputs.setdefault(name, output)
        return output

    watch(model, seen)
    loops = {
        f"{'.'.join(map(str, path))}.{inside}": module
        for path, module in nnx.iter_modules(model)
        if (inside := getattr(module, "inside", None)) is not None
    }
    return outputs, loops


def has_weights(module: nnx.Module) -> bool:
    """Return whether a module has parameters of its own, not only in modules inside of it."""
    return any(isinstance(value, nnx.Param) for value in vars(module).values())


def watch(
    model: nnx.Module, seen: Seen, wanted: Callable[[nnx.Module], bool] = has_weights
) -> None:
    """Hand what layers get and return to a function, whose result takes its place; in a trace.

    Args:
      model: of the trace that this is called in; calls in loops inside of it are not seen.
      seen: called with the dotted name of the layer, itself, its first argument and its output,
        of several the first.
      wanted: which modules are watched.
    """
    trace = get_opaque_trace_state()

    def watched(kind: type, name: str) -> type:
        def call(layer: Any, *arguments: Any, **options: Any) -> Any:
            output = kind.__call__(layer, *arguments, **options)
            several = type(output) is tuple  # as of a recurrent layer: outputs and last state
            first, *rest = output if several else (output,)
            if isinstance(first, jax.Array) and get_opaque_trace_state() == trace:
                first = seen(name, layer, arguments[0] if arguments else None, first)
            return (first, *rest) if several else first

        return type(kind.__name__, (kind,), {"__call__": call})

    for path, module in nnx.iter_modules(model):
        if path and callable(module) and wanted(module):
            module.__class__ = watched(type(module), ".".join(map(str, path)))


def by_layer(tree: Tree) -> dict[str, dict[str, jax.Array]]:
    """Return the arrays of each layer by their own name; layers go by dotted name."""
    layers: dict[str, dict[str, jax.Array]] = {}
    for name, array in named(tree).items():
        layer, _, own = name.rpartition(".")
        layers.setdefault(layer or "model", {})[own] = array
    return layers


def dead_units(gradient: jax.Array, *, stacked: bool = False) -> jax.Array:
    """Return the share of the units of a kernel [..., units] without any gradient.

    Args:
      stacked: the first axis is that of layers in a loop, each with units of its own.
    """
    axes = tuple(range(1 if stacked else 0, gradient.ndim - 1))
    return jnp.mean(jnp.all(gradient == 0, axis=axes).astype(jnp.float32))


def histogram(values: jax.Array) -> Histogram:
    """Return the counts of (some) values in bins of one width from the smallest to the largest."""
    values = values.ravel()
    values = values[:: -(-values.size // MOST)]
    low, high = jnp.min(values), jnp.max(values)
    width = jnp.where(high > low, high - low, 1.0)
    index = jnp.clip(jnp.floor((values - low) / width * BINS), 0, BINS - 1).astype(jnp.int32)
    counts = jnp.zeros(BINS, jnp.int32).at[index].add(1)
    return counts, low + width * jnp.linspace(0, 1, BINS + 1)


def _prefixed(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{PREFIX}/{name}": value for name, value in numbers.items()}
