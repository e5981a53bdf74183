"""A network made from a list of layers in the config, for lessons and quick ideas.

    model=cnn 'model.layers=[{conv:{features:6,kernel:5}},{max_pool:2},flatten,{dense:classes}]'

An entry is the name of a layer, or that with arguments: `{conv: {features: 8, kernel: 3}}`. A bare
value is the first argument: `{max_pool: 2}` is `{max_pool: {window: 2}}`. The layers and their
arguments are the functions of `experiments.models.cnn_layers`, and `skip`, which has a list inside:
`{skip: [{conv: {features: 8, kernel: 3}}, relu]}` adds its input to the output of its layers.
"""

import functools
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.lib.stride_tricks import sliding_window_view

from experiments.errors import UserError, suggest
from experiments.models import cnn_layers
from experiments.models.cnn_layers import Site, by
from experiments.models.layers import Dropout, Init
from experiments.ops.remat import as_block

State = dict[str, np.ndarray]  # by dotted name
CHUNK = 256  # images at a time, so that their patches fit into a processor's cache


class Layers(nnx.Module):
    """The layers of a list, one after the other, named by their kind and numbered per kind.

    The first `conv` is `conv1`. `where` is the place of the list in the config.

    Raises:
        UserError: a layer does not fit the output of the one before it.
    """

    def __init__(self, layers: Sequence[str | Mapping[str, Any]], site: Site, where: str):
        seen: Counter[str] = Counter()
        shape, names = site.shape, []
        for index, entry in enumerate(layers):
            kind, arguments = parsed(entry)
            try:
                layer = KINDS[kind](replace(site, shape=shape), **arguments)
                shape = output_shape(layer, shape)
            except (ValueError, UserError) as error:
                place = f"{where}[{index}] ({kind}), whose input is {by(shape)}"
                raise UserError(f"{place}: {error}") from error
            seen[kind] += 1
            names.append(f"{kind}{seen[kind]}")
            setattr(self, names[-1], layer)
        self.order, self.shape = tuple(names), shape

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        return _through(self, x, rngs, self.order)


def _through(
    layers: Layers, x: jax.Array, rngs: nnx.Rngs | None, names: Sequence[str]
) -> jax.Array:
    """Return the output of some of the layers, one after the other."""
    for layer in (getattr(layers, name) for name in names):
        x = layer(x, rngs=rngs) if isinstance(layer, Dropout | Skip) else layer(x)
    return x


class Skip(nnx.Module):
    """F(x) + S(x), or both side by side as channels, of two lists of layers F and S.

    References:
        He et al. 2016, "Deep residual learning for image recognition", section 3.2 (the sum);
        Ronneberger et al. 2015, "U-Net" (side by side).
    """

    def __init__(self, layers: Layers, shortcut: Layers, join: str):
        self.layers, self.shortcut, self.join = layers, shortcut, join

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        y, skipped = self.layers(x, rngs=rngs), self.shortcut(x, rngs=rngs)
        return y + skipped if self.join == "add" else jnp.concatenate([y, skipped], axis=-1)


def skip(
    site: Site,
    /,
    layers: list[str | dict],
    shortcut: list[str | dict] = [],  # noqa: B006  read from a signature, never changed
    join: Literal["add", "concatenate"] = "add",
) -> nnx.Module:
    """A skip connection past `layers`, through the layers of the `shortcut` if there are any."""
    inner, outer = Layers(layers, site, "layers"), Layers(shortcut, site, "shortcut")
    axes = slice(None) if join == "add" else slice(-1)
    if inner.shape[axes] != outer.shape[axes]:
        raise UserError(
            f"its layers give {by(inner.shape)} and its shortcut {by(outer.shape)}; give both one "
            f"shape, such as by shortcut: [{{conv: {{features: {inner.shape[-1]}, kernel: 1}}}}]"
        )
    return Skip(inner, outer, join)


KINDS: dict[str, Callable[..., nnx.Module]] = cnn_layers.KINDS | {"skip": skip}


class CNN(Layers):
    """A network of the layers in a list.

    [batch, *input_shape] to logits [batch, num_classes]; 1, 2 or 3 spatial dimensions, channels
    last.

    Raises:
        UserError: a layer does not fit the output of the one before it.
    """

    def __init__(
        self,
        *,
        layers: list[str | dict],
        input_shape: tuple[int, ...],
        num_classes: int,
        **init: Unpack[Init],
    ):
        super().__init__(layers, Site(tuple(input_shape), num_classes, init), "model.layers")
        if self.shape != (num_classes,):
            raise UserError(
                f"model.layers ends in {by(self.shape)}, which is not one score for each of "
                f"{num_classes} classes; end with flatten and {{dense: classes}}"
            )

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        # √n blocks of √n layers: what is saved and what is computed again are as large
        length = math.isqrt(len(self.order))
        for start in range(0, len(self.order), length):
            names = self.order[start : start + length]
            x = as_block(functools.partial(_through, names=names), self, x, rngs)
        return x

    @staticmethod
    def check_config(config: Mapping[str, Any], path: str) -> Iterator[tuple]:
        """Yield each layer's function, its arguments and their path, to be checked by annotations.

        Raises:
            UserError: an entry is not a layer, or lacks an argument.
        """
        yield from _calls(config["layers"], f"{path}.layers", f"{path}.layers[0]")

    @staticmethod
    def state_of_data(config: Mapping[str, Any], images: Callable[[], np.ndarray]) -> State:
        """Return the state that is computed from images [N, H, W, C] as the model sees them."""
        kind, arguments = parsed(config["layers"][0]) if config["layers"] else ("", {})
        if kind != "whiten":
            return {}
        given = inspect.signature(KINDS[kind]).bind(None, **arguments)
        given.apply_defaults()
        size, epsilon = given.arguments["kernel"], given.arguments["epsilon"]
        sides = (size, size) if isinstance(size, int) else size
        return {"whiten1.kernel": whitening_kernel(images(), sides, epsilon)}


def _calls(entries: Sequence[str | Mapping], path: str, first: str) -> Iterator[tuple]:
    """Yield what `CNN.check_config` does for one list; `first` is the path of the first layer."""
    for index, entry in enumerate(entries):
        where = f"{path}[{index}]"
        if isinstance(entry, Mapping) and len(entry) != 1:
            raise UserError(f"{where}: an entry is one layer, such as {{max_pool: 2}}")
        kind, arguments = parsed(entry)
        if kind not in KINDS:
            near = suggest(kind, KINDS) or f"; there are {', '.join(sorted(KINDS))}"
            raise UserError(f"{where}: there is no layer {kind!r}{near}")
        if kind == "whiten" and where != first:
            raise UserError(f"{where}: whiten reads the images, so it comes first")
        yield KINDS[kind], arguments, f"{where}.{kind}"
        try:
            inspect.signature(KINDS[kind]).bind(None, **arguments)
        except TypeError as error:
            raise UserError(f"{where}.{kind}: {error}") from error
        if kind == "skip":
            for name in ("layers", "shortcut"):
                yield from _calls(arguments.get(name, []), f"{where}.skip.{name}", first)


def parsed(entry: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return (kind, arguments) of an entry of the list."""
    if isinstance(entry, str):
        return entry, {}
    ((kind, value),) = entry.items()
    if isinstance(value, Mapping):
        return kind, dict(value)
    if value is None:
        return kind, {}
    names = list(inspect.signature(KINDS[kind]).parameters)[1:] if kind in KINDS else []
    return kind, {names[0] if names else "value": value}


def output_shape(layer: nnx.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a layer's output for one example; nothing is computed."""
    layer.eval()
    batch = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    shape = jax.eval_shape(lambda x: layer(x), batch).shape[1:]  # type: ignore[operator]
    layer.train()
    return shape


def whitening_kernel(images: np.ndarray, size: Sequence[int], epsilon: float) -> np.ndarray:
    """Return the filters [h, w, C, 2 h w C] for images float32 [N, H, W, C] as a model sees them.

    All patches of `size` (h, w) count. Their mean is taken to be 0, as that of normalised pixels.
    """
    values = int(np.prod(size)) * images.shape[-1]
    covariance, count = np.zeros((values, values)), 0
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        windows = np.moveaxis(sliding_window_view(chunk, size, axis=(1, 2)), 3, 5)
        patches = windows.reshape(-1, values)  # [N H' W', h w C]
        covariance += patches.T @ patches
        count += len(patches)
    eigenvalues, vectors = np.linalg.eigh(covariance / count)
    filters = vectors / np.sqrt(np.maximum(eigenvalues, 0) + epsilon)
    both = np.concatenate([filters, -filters], axis=1)
    return both.reshape(*size, images.shape[-1], -1).astype(np.float32)
