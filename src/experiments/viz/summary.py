"""A model layer by layer: shapes, parameters and their arithmetic, multiplications, memory.

Everything is read off traces of the evaluation and the training step: nothing is allocated,
compiled or read from disk, and every kind of model and objective works alike.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.interpreters.partial_eval import dce_jaxpr

from experiments.core.config import build
from experiments.core.experiment import Experiment
from experiments.core.transfer import matches, named
from experiments.models.densenet import DenseBlock
from experiments.models.layers import WeightedPool
from experiments.models.resnet import Repeated
from experiments.ops.product import xla_only
from experiments.viz.flops import LAYER, Operation, operations, size_in_bytes
from experiments.viz.layers import OTHER, Layer, Shapes, Summary, kind_of, summed, with_parameters
from experiments.viz.receptive_field import Scopes, Seen, steps_of

Loop = Repeated | DenseBlock
NOT_READ = ("label", "target", "mask", "lengths", "restart")  # by a model, of a batch
REST = "rest"  # the operations in no layer: preprocessing, losses, the optimizer


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
    evaluated = batch | {"mask": jax.ShapeDtypeStruct((size,), jnp.float32)}
    key = jax.eval_shape(jax.random.key, 0)
    state = experiment.abstract_state({})
    with xla_only():
        evaluate = functools.partial(experiment.eval_step, hparams={})
        forward = jax.make_jaxpr(evaluate)(*experiment.weights(state), evaluated)
        step = functools.partial(experiment.train_step, measured=False)
        training = jax.make_jaxpr(step)(state, batch, {}, key).jaxpr
    modules = experiment.has_modules
    layers = _forward_layers(operations(forward.jaxpr), modules, size)
    in_evaluation = set(layers)
    weights = jax.tree.map(lambda _: False, experiment.weights(state))
    read = {name: name not in NOT_READ for name in evaluated}
    seen = _seen(forward.jaxpr, jax.tree.leaves((weights, read)), experiment)
    # layers without weights or FLOPs are shown if no other layer is inside them
    shown = {name for name in layers if name != REST and not modules.get(name)}
    needed, _ = dce_jaxpr(training, [True] * len(training.outvars))
    for operation in operations(needed):
        name = _module_of(operation.layers, modules)
        layers.setdefault(name, Layer(name)).training_flops += operation.flops
    shapes: dict[str, list[tuple[int, ...]]] = defaultdict(list)  # of arrays, by their module
    frozen: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for name, parameter in named(state.params).items():
        module = name.rpartition(".")[0]
        shapes[module].append(parameter.shape)
        if any(matches(name, pattern) for pattern in experiment.frozen):
            frozen[module].append(parameter.shape)
        layers.setdefault(module, Layer(module)).training_only = module not in in_evaluation
    for name, output in experiment.outputs.items():
        if name in layers:
            layers[name].set_output(output)
    for name, layer in layers.items():
        layer.kind = experiment.kinds.get(name, OTHER)
    rows = [x for x in layers.values() if x.name in shown | shapes.keys() or x.training_flops]
    unrolled = list(_unrolled(rows, shapes, frozen, experiment))
    for row in unrolled:
        _set_seen(row, seen)
    blocks = tuple(_blocks(unrolled, experiment, seen))
    bytes_of_state = sum(map(size_in_bytes, jax.tree.leaves(state)))
    return Summary(tuple(unrolled), blocks, size, bytes_of_state)


class MarkedExperiment(Experiment):
    """An experiment that marks each operation of its traces with its layers.

    Attributes:
        has_modules: the names of all modules that can be called, and whether others are inside.
        outputs: what each module returned at its first call, by name.
        loops: the modules that compute several layers in a loop, by the name of the looped one.
        kinds: the kind of each module, by name.
        pooled: how many values a `WeightedPool` takes the mean of, by name.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.has_modules: dict[str, bool] = {}
        self.outputs: dict[str, Any] = {}
        self.loops: dict[str, Loop] = {}
        self.kinds: dict[str, str] = {}
        self.pooled: dict[str, int] = {}

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
                if isinstance(module, WeightedPool):
                    self.pooled[name] = module.window_size
                self.kinds[name] = kind_of(module)
                module.__class__ = self._marked(type(module), name)
        return model

    def _marked(self, kind: type, name: str) -> type:
        def call(module: Any, *arguments: Any, **named: Any) -> Any:
            with jax.named_scope(LAYER + name):
                output = kind.__call__(module, *arguments, **named)
            self.outputs.setdefault(name, jax.tree.leaves(output)[0])
            return output

        return type(kind.__name__, (kind,), {"__call__": call})


def _module_of(scopes: Scopes, has_modules: Mapping[str, bool]) -> str:
    return next((name for name in reversed(scopes) if name in has_modules), REST)


class Names:
    """Gives operations in the order of a program the names of their layers.

    A function beside modules is a layer, numbered from its second call on; one in a module without
    others is a part of that.
    """

    def __init__(self, has_modules: Mapping[str, bool]):
        self.has_modules = has_modules
        self.taken: set[str] = set()
        self.previous: Scopes = ()
        self.function = REST

    def of(self, scopes: Scopes) -> tuple[str, bool]:
        """Return the name of the layer of the next operation, and whether it is a function."""
        module = _module_of(scopes, self.has_modules)
        is_function = bool(scopes) and scopes[-1] not in self.has_modules
        is_function &= self.has_modules.get(module, True)
        if is_function and scopes != self.previous:
            name = scopes[-1] if module == REST else f"{module}.{scopes[-1]}"
            numbered = (f"{name}_{number}" for number in itertools.count(2))
            every = itertools.chain([name], numbered)
            self.function = next(n for n in every if n not in self.taken)
            self.taken.add(self.function)
        self.previous = scopes
        return (self.function, True) if is_function else (module, False)


def _forward_layers(
    program: Iterable[Operation], has_modules: Mapping[str, bool], batch_size: int
) -> dict[str, Layer]:
    """Return the layers of an evaluation by name, in its order, without their parameters."""
    layers: dict[str, Layer] = {}
    names = Names(has_modules)
    for operation in program:
        name, is_function = names.of(operation.layers)
        layer = layers.setdefault(name, Layer(name))
        if is_function:
            layer.set_output(operation.output)
        layer.flops += operation.flops // batch_size
    return layers


def _seen(program: Any, inputs: Sequence[bool], experiment: MarkedExperiment) -> dict[str, Seen]:
    """Return what each layer of an evaluation has seen of the input, by name, loops unrolled."""
    modules, found = experiment.has_modules, {}
    names = Names(modules)
    loops = {inside.rpartition(".")[0]: inside for inside in experiment.loops}
    for scopes, turn, seen in steps_of(program, inputs, lambda s: _module_of(s, modules), loops):
        name, _ = names.of(scopes)
        if turn is not None:
            name = f"{turn[0]}[{turn[1]}]{name.removeprefix(turn[0])}"
        found[name] = seen
    return found


def _set_seen(row: Layer, seen: Mapping[str, Seen]) -> None:
    """Set what a row's output has seen of the input."""
    if (known := seen.get(row.name)) is not None:
        row.receptive_field = tuple(axis.size for axis in known.field or ())
        row.depth = known.depth


def _blocks(
    rows: Sequence[Layer], experiment: MarkedExperiment, seen: Mapping[str, Seen]
) -> Iterator[Layer]:
    """Yield the sums over the layers of each block: an outermost module with several inside."""
    for name, group in itertools.groupby(rows, lambda row: _block_of(row.name, experiment)):
        layers = list(group)
        if name is None or len(layers) < 2:
            continue
        block = summed(name, layers)
        output = experiment.outputs.get(name.partition("[")[0])
        if output is not None:
            block.output_shape = tuple(output.shape[1:])
        block.training_only = all(layer.training_only for layer in layers)
        _set_seen(block, seen)
        yield block


def _block_of(layer: str, experiment: MarkedExperiment) -> str | None:
    """Return the name of the block that a layer is in; each turn of a `Repeated` is one."""
    for inside, loop in experiment.loops.items():
        if isinstance(loop, Repeated) and layer.startswith(f"{inside}["):
            return layer.partition("]")[0] + "]"
    parts = layer.split(".")
    paths = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((path for path in paths if path in experiment.outputs), None)


def _unrolled(
    layers: Sequence[Layer],
    shapes: Mapping[str, Shapes],
    frozen: Mapping[str, Shapes],
    experiment: MarkedExperiment,
) -> Iterator[Layer]:
    """Yield the layers with their parameters, those in a loop once per turn of it."""
    loops, pooled = experiment.loops, experiment.pooled

    def loop_of(layer: Layer) -> str | None:
        return next((inside for inside in loops if layer.name.startswith(f"{inside}.")), None)

    for inside, group in itertools.groupby(layers, loop_of):
        if inside is None:
            for layer in group:
                own = (shapes.get(layer.name, ()), frozen.get(layer.name, ()))
                yield with_parameters(layer, *own, pooled.get(layer.name))
            continue
        looped = list(group)
        for turn, layer in itertools.product(range(loops[inside].depth), looped):
            part = layer.name.removeprefix(inside)
            own = (shapes.get(layer.name, ()), frozen.get(layer.name, ()))
            one = _of_turn(layer, *own, loops[inside], turn, part)
            yield replace(one, name=f"{inside}[{turn}]{part}")


def _of_turn(
    layer: Layer, shapes: Shapes, frozen: Shapes, loop: Loop, turn: int, part: str
) -> Layer:
    """Return the share that one turn of a loop has in a layer, and in its parameters.

    Where turns differ in the channels that they read, parameters are joined along those, and
    operations are counted as if no turn computed more than it has to.
    """
    shape, size = layer.output_shape, layer.output_bytes
    if (widths := loop.widths_of(part)) is None:
        share, whole = 1, loop.depth
        shapes, frozen = ([stacked[1:] for stacked in each] for each in (shapes, frozen))
    else:
        own, whole = widths
        share, joined = own[turn], sum(own)
        shapes, frozen = (
            [tuple(share if n == joined else n for n in one) for one in each]
            for each in (shapes, frozen)
        )
        if not layer.flops:  # a normalisation: its output is as wide as its input
            shape, size = (*shape[:-1], share), size // shape[-1] * share
    of_turn = replace(
        layer,
        output_shape=shape,
        output_bytes=size,
        flops=layer.flops * share // whole,
        training_flops=layer.training_flops * share // whole,
    )
    return with_parameters(of_turn, shapes, frozen)
