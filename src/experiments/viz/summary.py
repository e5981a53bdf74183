"""A model layer by layer: shapes, parameters and their arithmetic, FLOPs, memory.

Everything is read off traces of the evaluation and the training step: nothing is allocated,
compiled or read from disk, and every kind of model and objective works alike.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.interpreters.partial_eval import dce_jaxpr

from experiments.core.config import build
from experiments.core.experiment import Experiment, Hparams, Tree
from experiments.models.dense_block import DenseBlock
from experiments.models.repeated import Repeated
from experiments.ops.product import xla_only
from experiments.viz.flops import LAYER, Operation, operations

Shapes = Sequence[tuple[int, ...]]
REST = "rest"  # what is in no layer: preprocessing, losses, the optimizer


@dataclass
class Layer:
    """A line of the summary.

    Attributes:
        name: path of the module in the model, or of a function without weights in its module.
        output_shape: without the batch; () where nothing comes out.
        output_bytes: of the output for one example.
        parameters: of the layer itself, without those of layers inside of it.
        arithmetic: how they come about, such as `(5·5·6+1)·16`.
        flops: of the evaluation of one example.
        training_flops: of a training step, for the whole batch.
    """

    name: str
    output_shape: tuple[int, ...] = ()
    output_bytes: int = 0
    parameters: int = 0
    arithmetic: str = ""
    flops: int = 0
    training_flops: int = 0

    def gives(self, output: Any) -> None:
        """Takes note of the output, [batch, ...]."""
        self.output_shape = tuple(output.shape[1:])
        self.output_bytes = math.prod(self.output_shape) * output.dtype.itemsize


@dataclass(frozen=True)
class Summary:
    """The layers of a model in the order of its computation, and the batch that they are for."""

    layers: tuple[Layer, ...]
    batch_size: int
    state_bytes: int  # parameters, batch statistics and the optimizer's state

    def total(self, attribute: str) -> int:
        """The sum over the layers."""
        return sum(getattr(layer, attribute) for layer in self.layers)


def summarize(config: Mapping[str, Any]) -> Summary:
    """The summary of the model that a config describes, for its data and its batch size."""
    data = build(config["data"])
    spec = data.spec
    size = data.batch_size if data.batch_size > 0 else spec.train_examples or 1
    experiment = Marked(config, spec, data.pipeline, 1, 1)
    batch = {
        name: jax.ShapeDtypeStruct((size, *shape), jnp.dtype(dtype))
        for name, (shape, dtype) in spec.example.items()
    }
    mask = jax.ShapeDtypeStruct((size,), jnp.float32)
    key = jax.eval_shape(jax.random.key, 0)
    state = experiment.abstract_state({})
    with xla_only():
        evaluate = functools.partial(experiment.eval_step, hparams={})
        forward = jax.make_jaxpr(evaluate)(*experiment.weights(state), batch | {"mask": mask})
        step = functools.partial(experiment.train_step, measured=False)
        training = jax.make_jaxpr(step)(state, batch, {}, key).jaxpr
    layers = _forward(operations(forward.jaxpr), experiment.modules, size)
    # of what has neither weights nor products, those layers that hold no others
    shown = {name for name in layers if name != REST and not experiment.modules.get(name)}
    needed, _ = dce_jaxpr(training, [True] * len(training.outvars))
    for operation in operations(needed):
        inside = [name for name in operation.layers if name in experiment.modules]
        name = inside[-1] if inside else REST
        layers.setdefault(name, Layer(name)).training_flops += operation.flops
    shapes = dict(_own_parameters(state.params))
    for name in shapes:
        layers.setdefault(name, Layer(name))
    for name, output in experiment.outputs.items():
        if name in layers:
            layers[name].gives(output)
    worth = [x for x in layers.values() if x.name in shown | shapes.keys() or x.training_flops]
    each = _one_by_one(worth, shapes, experiment.loops)
    return Summary(tuple(each), size, _bytes(state))


class Marked(Experiment):
    """An experiment in whose traces each operation says which layer it is in.

    `modules` holds the names of all modules that can be called, and whether others are inside of
    them; `outputs` what they gave when they were first called; `loops` those that compute several
    layers with one module, by its name.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.modules: dict[str, bool] = {}
        self.outputs: dict[str, Any] = {}
        self.loops: dict[str, Repeated | DenseBlock] = {}

    def model(self, hparams: Hparams, kernel_init: Any) -> nnx.Module:
        """The model, each of its modules in a name scope of its own."""
        model = super().model(hparams, kernel_init)
        for path, module in nnx.iter_modules(model):
            if path and callable(module):
                name = ".".join(map(str, path))
                self.modules.setdefault(name, False)
                if isinstance(module, Repeated | DenseBlock):
                    self.loops[f"{name}.{module.inside}"] = module
                for end in range(1, len(path)):
                    self.modules[".".join(map(str, path[:end]))] = True
                module.__class__ = self._marked(type(module), name)
        return model

    def _marked(self, kind: type, name: str) -> type:
        def call(module: Any, *arguments: Any, **named: Any) -> Any:
            with jax.named_scope(LAYER + name):
                output = kind.__call__(module, *arguments, **named)
            self.outputs.setdefault(name, jax.tree.leaves(output)[0])
            return output

        return type(kind.__name__, (kind,), {"__call__": call})


def _around(name: str, loops: Iterable[str]) -> str | None:
    """The module in a loop that a layer is in."""
    return next((inside for inside in loops if name.startswith(f"{inside}.")), None)


def _one_by_one(
    layers: Sequence[Layer], shapes: Mapping[str, Shapes], loops: Mapping[str, Any]
) -> Iterator[Layer]:
    """The layers with their parameters, those in a loop as often as it runs."""
    for inside, group in itertools.groupby(layers, lambda layer: _around(layer.name, loops)):
        if inside is None:
            for layer in group:
                yield _with_parameters(layer, shapes.get(layer.name, []))
            continue
        of_loop = list(group)
        for position, layer in itertools.product(range(loops[inside].depth), of_loop):
            tail = layer.name.removeprefix(inside)
            name, own = f"{inside}[{position}]{tail}", shapes.get(layer.name, [])
            one, own = _one(layer, own, position, loops[inside], tail)
            yield _with_parameters(dataclasses.replace(one, name=name), own)


def _one(
    layer: Layer, shapes: Shapes, position: int, loop: Repeated | DenseBlock, tail: str
) -> tuple[Layer, Shapes]:
    """What one turn of a loop has of a layer, and of its parameters.

    Where turns differ in the channels that they read, parameters are joined along those, and
    operations are counted as if no turn computed more than it has to.
    """
    widths = loop.widths_of(tail)
    own, computed = (1, loop.depth) if widths is None else (widths.own[position], widths.computed)
    one = dataclasses.replace(
        layer,
        flops=layer.flops * own // computed,
        training_flops=layer.training_flops * own // computed,
    )
    if widths is None:
        return one, [shape[1:] for shape in shapes]
    if not layer.flops:  # a normalisation, which gives what it reads
        one.output_shape = (*layer.output_shape[:-1], own)
        one.output_bytes = layer.output_bytes // layer.output_shape[-1] * own
    joined = sum(widths.own)
    return one, [tuple(own if size == joined else size for size in shape) for shape in shapes]


def _with_parameters(layer: Layer, shapes: Shapes) -> Layer:
    return dataclasses.replace(
        layer, parameters=sum(map(math.prod, shapes)), arithmetic=arithmetic(shapes)
    )


def arithmetic(shapes: Sequence[tuple[int, ...]]) -> str:
    """The sum of the sizes of arrays, those that share a last dimension together.

    >>> arithmetic([(5, 5, 6, 16), (16,)])
    '(5·5·6+1)·16'
    """
    by_last: dict[int | None, list[str]] = {}
    for shape in sorted(shapes, key=len, reverse=True):
        terms = by_last.setdefault(shape[-1] if shape else None, [])
        terms.append("·".join(map(str, shape[:-1])) or "1")
    return " + ".join(_sum(terms, last) for last, terms in by_last.items())


def _sum(terms: list[str], last: int | None) -> str:
    if set(terms) == {"1"}:
        terms = [] if len(terms) == 1 else [str(len(terms))]
    whole = "+".join(terms)
    factors = [f"({whole})" if len(terms) > 1 else whole, "" if last is None else str(last)]
    return "·".join(filter(None, factors)) or "1"


def _forward(
    program: Iterator[Operation], modules: Mapping[str, bool], size: int
) -> dict[str, Layer]:
    """The layers of an evaluation by name, as it comes to them, without their parameters."""
    layers: dict[str, Layer] = {}
    current: tuple[str, ...] = ()
    function = REST
    for operation in program:
        names = operation.layers
        inside = [name for name in names if name in modules]
        name = inside[-1] if inside else REST
        if names and names[-1] not in modules and modules.get(name, True):  # not a module's all
            if names != current:
                function = _numbered(".".join([*inside[-1:], names[-1]]), layers)
            layer = layers.setdefault(function, Layer(function))
            layer.gives(operation.output)
        else:
            layer = layers.setdefault(name, Layer(name))
        layer.flops += operation.flops // size
        current = names
    return layers


def _numbered(name: str, taken: Mapping[str, Any]) -> str:
    """`name`, or where it is taken `name_2`, `name_3`, ..."""
    number = 1
    while (numbered := f"{name}_{number}" if number > 1 else name) in taken:
        number += 1
    return numbered


def _own_parameters(params: Tree, path: str = "") -> Iterator[tuple[str, list[tuple[int, ...]]]]:
    """Every module that has weights of its own, and their shapes."""
    own = [value.shape for value in params.values() if not isinstance(value, Mapping)]
    if own:
        yield path, own
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from _own_parameters(value, f"{path}.{key}" if path else str(key))


def _bytes(tree: Tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
