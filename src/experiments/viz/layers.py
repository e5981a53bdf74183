"""The rows of a model's summary: its layers, their parameters and connections, and sums of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from flax import nnx

from experiments.core.experiment import State, Tree
from experiments.models.cnn_layers import ConvTranspose, Whitening
from experiments.models.layers import BatchNorm, Conv, Dense, GroupNorm
from experiments.models.lenet_to_vgg import PartialConv
from experiments.models.recurrent_layers import Direction

Shapes = Sequence[tuple[int, ...]]

OTHER = "other"  # a layer of none of the kinds in `KINDS`

KINDS: dict[str, tuple[type, ...]] = {
    "convolutional": (Conv, ConvTranspose, PartialConv, Whitening, nnx.Conv, nnx.ConvTranspose),
    "dense": (Dense, nnx.Linear),
    "recurrent": (Direction,),
    "normalisation": (BatchNorm, GroupNorm, nnx.BatchNorm, nnx.LayerNorm, nnx.GroupNorm),
}

SUMS = ("parameters", "frozen", "connections", "flops", "training_flops", "output_bytes")


@dataclass
class Layer:
    """A row of the summary.

    Attributes:
        name: path of the module in the model, or of a function without weights in its module.
        title: what a paper calls it.
        kind: convolutional, dense, recurrent, normalisation or other.
        output_shape: without the batch; () where nothing comes out.
        output_bytes: of the output for one example.
        parameters: of the layer itself, without those of layers inside it.
        frozen: how many of them `freeze` keeps as they are.
        training_only: it takes no part in an evaluation, like an auxiliary classifier.
        arithmetic: the product of sizes that gives them, such as `(5·5·6+1)·16`.
        receptive_field: sides of the window of the input that a value of the output depends on,
            padding included; () where there is none, as of a dense layer, or it is not known.
        depth: weighted layers on the longest way from the input; 0 where none is known.
        connections: what goes into all units, biases included, as LeCun et al. 1998 count them; 0
            without weights.
        flops: of one example's first pass, twice the multiplications.
        training_flops: of a training step, for the whole batch.
    """

    name: str
    title: str = ""
    kind: str = OTHER
    output_shape: tuple[int, ...] = ()
    output_bytes: int = 0
    parameters: int = 0
    frozen: int = 0
    training_only: bool = False
    arithmetic: str = ""
    receptive_field: tuple[int, ...] = ()
    depth: int = 0
    connections: int = 0
    flops: int = 0
    training_flops: int = 0

    @property
    def multiplications(self) -> int:
        """Those of products and convolutions, for one example."""
        return self.flops // 2

    def set_output(self, output: Any) -> None:
        """Take the shape and the bytes of one example from an output [batch, ...]."""
        self.output_shape = tuple(output.shape[1:])
        self.output_bytes = math.prod(self.output_shape) * output.dtype.itemsize


@dataclass(frozen=True)
class Summary:
    """The layers of a model in the order of its computation, and the batch that they are for."""

    layers: tuple[Layer, ...]
    blocks: tuple[Layer, ...]  # those with several layers inside, which have sums over them
    batch_size: int
    state: State  # shapes: parameters, batch statistics, the optimizer's state and averages
    weights: Tree  # shapes: what an evaluation reads of it
    saved_bytes: int  # that the forward pass of a step leaves for the backward pass, at most
    resizing: int  # multiplications of one example before the first layer

    def total(self, attribute: str) -> int:
        """Return the sum over the layers."""
        return sum(getattr(layer, attribute) for layer in self.layers)

    @property
    def kinds(self) -> dict[str, Layer]:
        """The sums over the layers of each kind that there is."""
        groups = {kind: [x for x in self.layers if x.kind == kind] for kind in (*KINDS, OTHER)}
        return {kind: summed(kind, layers) for kind, layers in groups.items() if layers}

    @property
    def auxiliary(self) -> Layer:
        """The sums over the layers that only training has."""
        return summed("in training only", [x for x in self.layers if x.training_only])

    @property
    def receptive_field(self) -> tuple[int, ...]:
        """That of the last maps of the model; () where there are none, or it is not known."""
        fields = [layer.receptive_field for layer in self.layers if layer.receptive_field]
        return fields[-1] if fields else ()

    @property
    def depth(self) -> int:
        """The number of weighted layers on the longest way through the model."""
        return max((layer.depth for layer in self.layers), default=0)


def summed(name: str, layers: Sequence[Layer]) -> Layer:
    """Return a row with the sums over some."""
    sums: dict[str, Any] = {key: sum(getattr(x, key) for x in layers) for key in SUMS}
    return Layer(name, **sums)


def kind_of(module: Any) -> str:
    """Return the kind of a layer."""
    return next((kind for kind, classes in KINDS.items() if isinstance(module, classes)), OTHER)


def with_parameters(
    layer: Layer, shapes: Shapes, frozen: Shapes, pooled: int | None = None
) -> Layer:
    """Return a layer with its parameters, and the connections that these make.

    Every place of the output has each of the biases. `pooled` values are weighted as one.
    """
    connections = 0
    if layer.flops:
        biases = sum(shape[0] for shape in shapes if len(shape) == 1)
        connections = layer.multiplications + math.prod(layer.output_shape[:-1]) * biases
    elif pooled is not None:
        connections = math.prod(layer.output_shape) * (pooled + 1)
    return replace(
        layer,
        parameters=_size(shapes),
        frozen=_size(frozen),
        arithmetic=arithmetic(shapes),
        connections=connections,
    )


def _size(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes))


def arithmetic(shapes: Shapes) -> str:
    """Return the sum of the sizes of arrays, with those that share a last dimension together.

    >>> arithmetic([(5, 5, 6, 16), (16,)])
    '(5·5·6+1)·16'
    """
    by_last: dict[int | None, list[str]] = {}
    for shape in sorted(shapes, key=len, reverse=True):
        terms = by_last.setdefault(shape[-1] if shape else None, [])
        terms.append("·".join(map(str, shape[:-1])) or "1")
    return " + ".join(_product(terms, last) for last, terms in by_last.items())


def _product(terms: list[str], last: int | None) -> str:
    if set(terms) == {"1"}:
        terms = [] if len(terms) == 1 else [str(len(terms))]
    whole = "+".join(terms)
    factors = [f"({whole})" if len(terms) > 1 else whole, "" if last is None else str(last)]
    return "·".join(filter(None, factors)) or "1"
