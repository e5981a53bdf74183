"""A model layer by layer: shapes, parameters and their arithmetic, FLOPs, memory.

Everything is read off traces of the evaluation and the training step: nothing is allocated,
compiled or read from disk, and every kind of model and objective works alike.
"""

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.interpreters.partial_eval import dce_jaxpr

from experiments.core.config import build
from experiments.core.experiment import Experiment
from experiments.core.transfer import named
from experiments.models.densenet import DenseBlock
from experiments.models.resnet import Repeated
from experiments.ops.product import xla_only
from experiments.viz.flops import LAYER, Operation, operations, size_in_bytes

Shapes = Sequence[tuple[int, ...]]
Loop = Repeated | DenseBlock
REST = "rest"  # the operations in no layer: preprocessing, losses, the optimizer


@dataclass
class Layer:
    """A row of the summary.

    Attributes:
        name: path of the module in the model, or of a function without weights in its module.
        output_shape: without the batch; () where nothing comes out.
        output_bytes: of the output for one example.
        parameters: of the layer itself, without those of layers inside it.
        arithmetic: the product of sizes that gives them, such as `(5·5·6+1)·16`.
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

    def set_output(self, output: Any) -> None:
        """Take the shape and the bytes of one example from an output [batch, ...]."""
        self.output_shape = tuple(output.shape[1:])
        self.output_bytes = math.prod(self.output_shape) * output.dtype.itemsize


@dataclass(frozen=True)
class Summary:
    """The layers of a model in the order of its computation, and the batch that they are for."""

    layers: tuple[Layer, ...]
    batch_size: int
    state_bytes: int  # parameters, batch statistics and the optimizer's state

    def total(self, attribute: str) -> int:
        """Return the sum over the layers."""
        return sum(getattr(layer, attribute) for layer in self.layers)


def summarize(config: Mapping[str, Any]) -> Summary:
    """Return the summary of the model that a config describes, for its data and batch size."""
    data = build(config["data"])
    spec = data.spec
    size = data.batch_size if data.batch_size > 0 else spec.train_examples or 1
    experiment = MarkedExperiment(config, spec, data.pipeline, 1, 1)
    batch = {
        name: jax.ShapeDtypeStruct((size, *shape), jnp.dtype(dtype))
        for name, (shape, dtype) in spec.stored.items()
    }
    mask = jax.ShapeDtypeStruct((size,), jnp.float32)
    key = jax.eval_shape(jax.random.key, 0)
    state = experiment.abstract_state({})
    with xla_only():
        evaluate = functools.partial(experiment.eval_step, hparams={})
        forward = jax.make_jaxpr(evaluate)(*experiment.weights(state), batch | {"mask": mask})
        step = functools.partial(experiment.train_step, measured=False)
        training = jax.make_jaxpr(step)(state, batch, {}, key).jaxpr
    layers = _forward_layers(operations(forward.jaxpr), experiment.has_modules, size)
    # layers without weights or FLOPs are shown if no other layer is inside them
    shown = {name for name in layers if name != REST and not experiment.has_modules.get(name)}
    needed, _ = dce_jaxpr(training, [True] * len(training.outvars))
    for operation in operations(needed):
        name = _module_of(operation, experiment.has_modules)
        layers.setdefault(name, Layer(name)).training_flops += operation.flops
    shapes: dict[str, list[tuple[int, ...]]] = defaultdict(list)  # of arrays, by their module
    for name, parameter in named(state.params).items():
        module = name.rpartition(".")[0]
        shapes[module].append(parameter.shape)
        layers.setdefault(module, Layer(module))
    for name, output in experiment.outputs.items():
        if name in layers:
            layers[name].set_output(output)
    rows = [x for x in layers.values() if x.name in shown | shapes.keys() or x.training_flops]
    unrolled = tuple(_unrolled(rows, shapes, experiment.loops))
    return Summary(unrolled, size, sum(map(size_in_bytes, jax.tree.leaves(state))))


class MarkedExperiment(Experiment):
    """An experiment that marks each operation of its traces with its layers.

    Attributes:
        has_modules: the names of all modules that can be called, and whether others are inside.
        outputs: what each module returned at its first call, by name.
        loops: the modules that compute several layers in a loop, by the name of the looped one.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.has_modules: dict[str, bool] = {}
        self.outputs: dict[str, Any] = {}
        self.loops: dict[str, Loop] = {}

    def model(self, *arguments: Any) -> nnx.Module:
        """Build the model, with each of its modules in a name scope of its own."""
        model = super().model(*arguments)
        for path, module in nnx.iter_modules(model):
            if path and callable(module):
                name = ".".join(map(str, path))
                self.has_modules.setdefault(name, False)
                for end in range(1, len(path)):
                    self.has_modules[".".join(map(str, path[:end]))] = True
                if isinstance(module, Loop):
                    self.loops[f"{name}.{module.inside}"] = module
                module.__class__ = self._marked(type(module), name)
        return model

    def _marked(self, kind: type, name: str) -> type:
        def call(module: Any, *arguments: Any, **named: Any) -> Any:
            with jax.named_scope(LAYER + name):
                output = kind.__call__(module, *arguments, **named)
            self.outputs.setdefault(name, jax.tree.leaves(output)[0])
            return output

        return type(kind.__name__, (kind,), {"__call__": call})


def _module_of(operation: Operation, has_modules: Mapping[str, bool]) -> str:
    return next((name for name in reversed(operation.layers) if name in has_modules), REST)


def _forward_layers(
    program: Iterable[Operation], has_modules: Mapping[str, bool], batch_size: int
) -> dict[str, Layer]:
    """Return the layers of an evaluation by name, in its order, without their parameters."""
    layers: dict[str, Layer] = {}
    previous: tuple[str, ...] = ()
    function = REST
    for operation in program:
        scopes, module = operation.layers, _module_of(operation, has_modules)
        # a function beside modules is a layer; one in a module without others is a part of it
        if scopes and scopes[-1] not in has_modules and has_modules.get(module, True):
            if scopes != previous:
                name = scopes[-1] if module == REST else f"{module}.{scopes[-1]}"
                numbered = (f"{name}_{number}" for number in itertools.count(2))
                function = next(n for n in itertools.chain([name], numbered) if n not in layers)
            layer = layers.setdefault(function, Layer(function))
            layer.set_output(operation.output)
        else:
            layer = layers.setdefault(module, Layer(module))
        layer.flops += operation.flops // batch_size
        previous = scopes
    return layers


def _unrolled(
    layers: Sequence[Layer], shapes: Mapping[str, Shapes], loops: Mapping[str, Loop]
) -> Iterator[Layer]:
    """Yield the layers with their parameters, those in a loop once per turn of it."""

    def loop_of(layer: Layer) -> str | None:
        return next((inside for inside in loops if layer.name.startswith(f"{inside}.")), None)

    for inside, group in itertools.groupby(layers, loop_of):
        if inside is None:
            for layer in group:
                own = shapes.get(layer.name, ())
                yield replace(layer, parameters=_size(own), arithmetic=arithmetic(own))
            continue
        looped = list(group)
        for turn, layer in itertools.product(range(loops[inside].depth), looped):
            part = layer.name.removeprefix(inside)
            one = _of_turn(layer, shapes.get(layer.name, ()), loops[inside], turn, part)
            yield replace(one, name=f"{inside}[{turn}]{part}")


def _of_turn(layer: Layer, shapes: Shapes, loop: Loop, turn: int, part: str) -> Layer:
    """Return the share that one turn of a loop has in a layer, and in its parameters.

    Where turns differ in the channels that they read, parameters are joined along those, and
    operations are counted as if no turn computed more than it has to.
    """
    shape, size = layer.output_shape, layer.output_bytes
    if (widths := loop.widths_of(part)) is None:
        share, whole = 1, loop.depth
        shapes = [stacked[1:] for stacked in shapes]
    else:
        own, whole = widths
        share, joined = own[turn], sum(own)
        shapes = [tuple(share if n == joined else n for n in each) for each in shapes]
        if not layer.flops:  # a normalisation: its output is as wide as its input
            shape, size = (*shape[:-1], share), size // shape[-1] * share
    return replace(
        layer,
        output_shape=shape,
        output_bytes=size,
        parameters=_size(shapes),
        arithmetic=arithmetic(shapes),
        flops=layer.flops * share // whole,
        training_flops=layer.training_flops * share // whole,
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
