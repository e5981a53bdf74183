"""What a model's answer depends on: pixels, places in a picture, steps in time.

All of it is computed with trained weights in the mode of evaluation, for batches as stored.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.core.diagnostics.layers import Seen, by_layer, has_weights, watch
from experiments.core.experiment import Experiment, Tree
from experiments.core.rng import stream
from experiments.data.dataset import model_input
from experiments.models.recurrent_layers import Reader

Weights = tuple[Tree, Tree]  # (params, model_state)
Batch = Mapping[str, Any]
Wanted = Callable[[nnx.Module], bool]
Call = tuple[tuple[int, ...], jax.ShapeDtypeStruct]  # shape of the input, output


class Attribution(NamedTuple):
    """Where the score of the predicted class of each example comes from.

    Attributes:
      inputs: as the model sees them, [n, H, W, C].
      predictions: of the objective, [n, classes].
      saliency: the largest |d score / d pixel| of the channels, [n, H, W].
      class_map: of Grad-CAM, [n, H, W] in 0..1; None without a convolution.
      layer: the layer that the map is of; None without one.
    """

    inputs: np.ndarray
    predictions: np.ndarray
    saliency: np.ndarray
    class_map: np.ndarray | None
    layer: str | None


def attribute(experiment: Experiment, weights: Weights, batch: Batch) -> Attribution:
    """Return saliency and class activation maps of a classifier of images.

    The map of Grad-CAM is relu(Σₖ αₖ Aₖ), enlarged to the size of the input and divided by its
    maximum: Aₖ are the maps of the last layer or block with a convolution, and αₖ is the mean over
    the positions of d score / d Aₖ. A layer's maps are those before an activation that is no layer
    itself.

    References:
      Simonyan et al. 2014, "Deep inside convolutional networks", section 3 (saliency); Selvaraju et
      al. 2017, "Grad-CAM", equations 1 and 2.
    """
    large = {
        name: output
        for name, (_, output) in calls(experiment, weights, batch, has_convolution).items()
        if len(output.shape) == 4 and math.prod(output.shape[1:3]) > 1
    }
    layer = next(reversed(large), None)
    probe = None if layer is None else np.zeros(large[layer].shape, large[layer].dtype)

    @jax.jit
    def attributed(weights: Weights, batch: Batch, probe: Any) -> tuple[jax.Array, ...]:
        given = prepared(experiment, batch)
        name, inputs = model_input(given)

        def score_of(inputs: jax.Array, probe: Any) -> tuple[jax.Array, Any]:
            maps: list[jax.Array] = []

            def seen(at: str, _: nnx.Module, __: Any, output: jax.Array) -> jax.Array:
                if at == layer and not maps:
                    maps.append(output)
                    return output + probe
                return output

            changed = given | {name: inputs}
            _, scores = answer(experiment, weights, changed, seen, has_convolution)
            score = jnp.take_along_axis(scores, jnp.argmax(scores, -1, keepdims=True), -1)
            return jnp.sum(score), (scores, maps)

        slopes, (scores, maps) = jax.grad(score_of, (0, 1), has_aux=True)(inputs, probe)
        saliency = jnp.max(jnp.abs(slopes[0].astype(jnp.float32)), axis=-1)
        class_map = jnp.zeros_like(saliency)
        if layer is not None:
            alpha = jnp.mean(slopes[1].astype(jnp.float32), axis=(1, 2), keepdims=True)
            class_map = jax.nn.relu(jnp.sum(alpha * maps[0].astype(jnp.float32), axis=-1))
            class_map = jax.image.resize(class_map, saliency.shape, "bilinear")
            highest = jnp.max(class_map, axis=(1, 2), keepdims=True)
            class_map /= jnp.where(highest > 0, highest, 1)
        predictions = experiment.objective({}).predictions(scores)
        return inputs.astype(jnp.float32), predictions, saliency, class_map

    found = map(np.asarray, attributed(weights, batch, probe))
    inputs, predictions, saliency, class_map = found
    return Attribution(inputs, predictions, saliency, None if layer is None else class_map, layer)


def feature_maps(experiment: Experiment, weights: Weights, batch: Batch) -> dict[str, np.ndarray]:
    """Return what each convolution makes of images, by its name: [n, h, w, channels].

    They are in the order of the network, before an activation that is no layer itself. Layers in a
    loop are left out, whose values exist in it alone.
    """

    @jax.jit
    def mapped(weights: Weights, batch: Batch) -> dict[str, jax.Array]:
        maps: dict[str, jax.Array] = {}

        def seen(name: str, _: nnx.Module, given: Any, output: jax.Array) -> jax.Array:
            if output.ndim == 4:
                maps.setdefault(name, output.astype(jnp.float32))
            return output

        answer(experiment, weights, prepared(experiment, batch), seen, is_convolution)
        order.extend(maps)
        return maps

    order: list[str] = []  # a traced function returns its dicts sorted
    maps = mapped(weights, batch)
    return {name: np.asarray(maps[name]) for name in order}


def first_filters(experiment: Experiment, weights: Weights, batch: Batch) -> np.ndarray | None:
    """Return what each unit of the first layer looks for in images: [units, height, width, C].

    Convolutions have their kernels, dense layers weights for the whole picture; None where no layer
    reads pictures.
    """
    shape = experiment.input_shape
    if len(shape) != 3:
        return None
    pixels, own = math.prod(shape), by_layer(weights[0])
    for name, (given, _) in calls(experiment, weights, batch, has_weights).items():
        kernel = np.asarray(own.get(name, {}).get("kernel", 0), np.float32)
        if kernel.ndim == 4 and given[1:3] == shape[:2]:
            return np.moveaxis(kernel, -1, 0)
        # beside pixels a conditional model reads the class
        if kernel.ndim == 2 and given[-1] in (pixels, pixels + experiment.spec.num_classes):
            return np.moveaxis(kernel[:pixels].reshape(*shape, -1), -1, 0)
    return None


def gradient_through_time(
    experiment: Experiment, weights: Weights, batch: Batch
) -> np.ndarray | None:
    """Return the mean over examples of ‖d loss / d input‖ at each step of a sequence: [steps].

    Tokens count as one-hot vectors, or as the vectors that the model has learned for them. None for
    a model that reads no sequences.

    Args:
      batch: as stored, with a `mask` [n] of 0 for padding.

    References:
      Bengio et al. 1994, "Learning long-term dependencies with gradient descent is difficult".
    """

    def as_vectors(output: jax.Array) -> jax.Array:
        if jnp.issubdtype(output.dtype, jnp.integer):
            return jax.nn.one_hot(output, experiment.input_shape[-1], dtype=experiment.precision)
        return output

    read = calls(experiment, weights, batch, is_reader)
    if not read:
        return None
    ((_, (_, output)),) = read.items()
    vectors = jax.eval_shape(as_vectors, output)

    @jax.jit
    def norms(weights: Weights, batch: Batch, probe: Any) -> jax.Array:
        def loss_of(probe: jax.Array) -> jax.Array:
            def seen(_: str, __: nnx.Module, ___: Any, output: jax.Array) -> jax.Array:
                return as_vectors(output) + probe

            given = prepared(experiment, batch)
            values, _ = answer(experiment, weights, given, seen, is_reader)
            return jnp.sum(values["loss"] * batch["mask"])

        slopes = jax.grad(loss_of)(probe).astype(jnp.float32)
        lengths = jnp.linalg.norm(slopes, axis=-1)  # [n, steps]
        mask = batch["mask"][:, None]
        return jnp.sum(lengths * mask, axis=0) / jnp.sum(mask)

    return np.asarray(norms(weights, batch, np.zeros(vectors.shape, vectors.dtype)))


def is_reader(module: nnx.Module) -> bool:
    """Return whether a module is what hands a sequence to a recurrent network."""
    return isinstance(module, Reader)


def is_convolution(module: nnx.Module) -> bool:
    """Return whether a module has a kernel over places of its own."""
    return any(isinstance(v, nnx.Param) and v.ndim >= 4 for v in vars(module).values())


def has_convolution(module: nnx.Module) -> bool:
    """Return whether a module is or has a convolution inside of it."""
    return any(is_convolution(inner) for _, inner in nnx.iter_modules(module))


def calls(
    experiment: Experiment, weights: Weights, batch: Batch, wanted: Wanted
) -> dict[str, Call]:
    """Return the shapes of the first call of each wanted layer, in the order in which they end."""
    found: dict[str, Call] = {}

    def seen(name: str, _: nnx.Module, given: Any, output: jax.Array) -> jax.Array:
        shape = tuple(getattr(given, "shape", ()))
        found.setdefault(name, (shape, jax.ShapeDtypeStruct(output.shape, output.dtype)))
        return output

    def answered(weights: Weights, batch: Batch) -> Any:
        return answer(experiment, weights, prepared(experiment, batch), seen, wanted)[0]

    jax.eval_shape(answered, weights, dict(batch))
    return found


def has_layers(module: nnx.Module) -> bool:
    """Return whether a module is a layer with weights, or has such inside of it."""
    return any(has_weights(inner) for _, inner in nnx.iter_modules(module))


def in_order(names: Iterable[str], called: Iterable[str]) -> list[str]:
    """Return names of layers in the order of calls; those in a loop have its place."""
    place = {name: number for number, name in enumerate(called)}

    def key(name: str) -> tuple[int, str]:
        parts = name.split(".")
        outer = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((place[one] for one in outer if one in place), len(place)), name

    return sorted(names, key=key)


def prepared(experiment: Experiment, batch: Batch) -> dict[str, jax.Array]:
    """Return a stored batch as the objective sees it in an evaluation; a `mask` stays."""
    inputs = {name: value for name, value in batch.items() if name != "mask"}
    found = experiment.prepare(inputs, {}, jax.random.key(0), train=False)
    return found | ({"mask": batch["mask"]} if "mask" in batch else {})


def answer(
    experiment: Experiment, weights: Weights, batch: Batch, seen: Seen, wanted: Wanted
) -> tuple[dict[str, jax.Array], Any]:
    """Return the objective's values and outputs for a prepared batch; inside a trace.

    Args:
      seen, wanted: see `watch`.
    """
    model = experiment.trained_model({}, *weights)
    watch(model, seen, wanted)
    rngs = nnx.Rngs(sample=stream(jax.random.key(0), "sample"))
    return experiment.objective({})(model, batch, rngs, None)
