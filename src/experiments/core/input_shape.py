"""The shape that a model reads: as the data have it, or larger for small images."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.core.config import build, locate
from experiments.data.dataset import Spec
from experiments.errors import UserError

Shape = tuple[int, ...]


def check_target(config: Mapping[str, Any], spec: Spec) -> None:
    """Raise a `UserError` where the data have no such target as the objective needs."""
    kind = getattr(locate(config["objective"]["_target_"]), "kind", None)
    needed = {"classification": "label", "regression": "target"}.get(str(kind))
    if needed is None or "seed" in spec.stored:  # which stands for a generated example
        return
    if needed == "label" and needed in spec.stored and spec.num_classes < 2:
        raise UserError(
            "these data have one class, so there is nothing to tell apart; "
            "a model that needs no classes: model=autoencoder"
        )
    if not spec.stored or needed in spec.stored:
        return
    if "label" in spec.stored:
        raise UserError("these data have classes: say objective=classification loss=cross_entropy")
    if "target" in spec.stored:
        raise UserError("these data have numbers to predict: say objective=regression loss=mse")
    raise UserError("these data have no targets; a model that needs none: model=autoencoder")


def model_input_shape(config: Mapping[str, Any], spec: Spec) -> Shape:
    """Return the data's shape, with small images enlarged to the model's `minimum_size`.

    Raises:
        UserError: the model reads images and these are none, or `data.resize` is off and the
            images are too small for it.
    """
    if "_target_" not in config["model"]:
        raise UserError("model: its config names no class: _target_: mine.Net")
    model = locate(config["model"]["_target_"])
    minimum = getattr(model, "minimum_size", 0)
    shape = tuple(spec.input_shape)
    if minimum and len(shape) != 3:
        these, other = ("vectors", "mlp") if len(shape) == 1 else ("sequences", "lstm")
        raise UserError(
            f"{model.__name__} reads images, and these data are {these}: use model={other}"
        )
    smallest = min(shape[:2])
    if len(shape) != 3 or smallest >= minimum:
        return shape
    scale = minimum / smallest
    larger = (*(math.ceil(n * scale) for n in shape[:2]), shape[2])
    if config["data"].get("resize", True):
        return larger

    def outputs() -> jax.Array:
        network = build(
            config["model"],
            input_shape=shape,
            num_classes=spec.num_classes,
            kernel_init=jax.nn.initializers.zeros,
            rngs=nnx.Rngs(params=jax.random.key(0)),
        )
        network.eval()
        return network(jnp.zeros((1, *shape)))

    try:
        jax.eval_shape(outputs)  # fails where no pixel is left at the model's end
    except ValueError as error:
        small, large = ("x".join(map(str, size[:2])) for size in (shape, larger))
        raise UserError(
            f"{model.__name__} takes no images of {small}: {error}; "
            f"data.resize=true makes them {large}"
        ) from error
    return shape
