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
from jax.interpreters.partial_eval import dce_jaxpr

from experiments.core.config import build
from experiments.core.experiment import State
from experiments.core.transfer import matches, named
from experiments.models.resnet import Repeated
from experiments.ops.backend import xla_only
from experiments.ops.remat import recomputing
from experiments.viz.flops import Operation, operations, size_of
from experiments.viz.layers import OTHER, Layer, Shapes, Summary, summed, with_parameters
from experiments.viz.marking import (
    AGAIN,
    APART,
    ITSELF,
    RESIZING,
    REST,
    Loop,
    MarkedExperiment,
    Names,
    Parts,
    module_of,
)
from experiments.viz.receptive_field import Seen, steps_of

NOT_READ = ("label", "target", "mask", "lengths", "restart")  # by a model, of a batch


def summarize(config: Mapping[str, Any]) -> Summary:
    """Return the summary of the model that a config describes, for its data and batch size."""
    data = build(config["data"])
    spec = data.spec
    size = {-1: spec.train_examples or 1, "auto": 1}.get(data.batch_size, data.batch_size)
    experiment = MarkedExperiment(config, spec, data.pipeline, 1, 1)
    experiment.tta = None  # averages over several passes
    batch = {
        name: jax.ShapeDtypeStruct((size, *shape), jnp.dtype(dtype))
        for name, (shape, dtype) in spec.stored.items()
    }
    evaluated = batch | {"mask": jax.ShapeDtypeStruct((size,), jnp.float32)}
    key = jax.eval_shape(jax.random.key, 0)
    state = experiment.abstract_state({})
    with xla_only():
        evaluate = functools.partial(experiment.eval_step, hparams={})
        with experiment.in_one_pass():
            forward = jax.make_jaxpr(evaluate)(*experiment.weights(state), evaluated)
        step = functools.partial(experiment.train_step, measured=False)
        training = jax.make_jaxpr(step)(state, batch, {}, key).jaxpr
    modules = experiment.has_modules
    layers = _forward_layers(operations(forward.jaxpr), modules, size)
    resizing = layers[RESIZING].multiplications if RESIZING in layers else 0
    for name in layers.keys() & APART:
        layers[name].flops = 0
    in_evaluation = set(layers)
    weights = jax.tree.map(lambda _: False, experiment.weights(state))
    read = {name: name not in NOT_READ for name in evaluated}
    seen = _seen(forward.jaxpr, jax.tree.leaves((weights, read)), experiment)
    # layers without weights or FLOPs are shown if no other layer is inside them
    shown = {name for name in layers if name not in APART and not modules.get(name)}
    needed, _ = dce_jaxpr(training, [True] * len(training.outvars))
    names = Names(modules)
    for operation in operations(needed):
        name = names.module(operation.layers)
        layers.setdefault(name, Layer(name)).training_flops += operation.flops
    shapes: dict[str, list[tuple[int, ...]]] = defaultdict(list)  # of arrays, by their module
    frozen: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for name, parameter in named(state.params).items():
        module = name.rpartition(".")[0] or ITSELF
        shapes[module].append(parameter.shape)
        if any(matches(name, pattern) for pattern in experiment.frozen):
            frozen[module].append(parameter.shape)
        unused = module not in in_evaluation and module != ITSELF
        layers.setdefault(module, Layer(module)).training_only = unused
    if any(layer.training_only for layer in layers.values()):
        with xla_only(), experiment.in_one_pass():
            whole = jax.make_jaxpr(experiment.training_loss)(state, batch, key)
        for name, layer in _forward_layers(operations(whole.jaxpr), modules, size).items():
            if name in layers and layers[name].training_only:
                layers[name].flops = layer.flops
    for name, output in experiment.outputs.items():
        if name in layers:
            layers[name].set_output(output)
    for name, layer in layers.items():
        layer.kind = experiment.kinds.get(name, OTHER)
    rows = [x for x in layers.values() if x.name in shown | shapes.keys() or x.training_flops]
    for row in rows:
        _set_seen(row, seen)
    unrolled = list(_unrolled(rows, shapes, frozen, experiment))
    for row in unrolled:
        _set_seen(row, seen)
    unrolled.sort(key=lambda row: row.name == REST)
    blocks = tuple(_blocks(unrolled, experiment, seen))
    saved = _saved_bytes(experiment, state, batch, key)
    weights = experiment.weights(state)
    return Summary(tuple(unrolled), blocks, size, state, weights, saved, resizing)


def _saved_bytes(experiment: MarkedExperiment, state: State, batch: Any, key: Any) -> int:
    """Return the bytes that the forward pass of a step leaves for the backward pass, at most.

    Parameters that it reads again are among them. XLA may compute again what is quickly computed.
    Of a `trainer.remat=true` the inside of one block comes on top.
    """

    def saved(state: State, batch: Any, key: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            with recomputing(experiment.remat):
                own = state._replace(params=params, ema=None)
                return experiment.training_loss(own, batch, key)["loss"]

        return jax.vjp(loss, state.params)[1]

    with xla_only():
        return size_of(jax.eval_shape(saved, state, batch, key))


def _forward_layers(
    program: Iterable[Operation], has_modules: Mapping[str, bool], batch_size: int
) -> dict[str, Layer]:
    """Return the layers of an evaluation by name, in its order, without their parameters."""
    layers: dict[str, Layer] = {}
    names = Names(has_modules)
    for operation in program:
        name, is_function = names.of(operation.layers)
        if name == AGAIN:
            continue
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
    for scopes, turn, seen in steps_of(program, inputs, lambda s: module_of(s, modules), loops):
        name, _ = names.of(scopes)
        if name in APART:
            continue
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
        block.title = experiment.titles.get(name, "")
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
                parts = experiment.parts.get(layer.name.rpartition(".")[0])
                if parts:
                    yield from _parts(layer, *own, parts=parts)
                else:
                    yield with_parameters(layer, *own, pooled.get(layer.name))
            continue
        looped = list(group)
        for turn, layer in itertools.product(range(loops[inside].depth), looped):
            part = layer.name.removeprefix(inside)
            own = (shapes.get(layer.name, ()), frozen.get(layer.name, ()))
            one = _of_turn(layer, *own, loops[inside], turn, part)
            yield replace(one, name=f"{inside}[{turn}]{part}")


def _parts(layer: Layer, *arrays: Shapes, parts: Parts) -> Iterator[Layer]:
    """Yield the layers that one of a module with `parts` stands for, each with its parameters."""
    whole = sum(features for _, features in parts)
    for number, (title, features) in enumerate(parts):
        part = replace(
            layer,
            name=layer.name if len(parts) == 1 else f"{layer.name}[{number}]",
            title=title,
            output_shape=(*layer.output_shape[:-1], features),
            output_bytes=layer.output_bytes * features // whole,
            flops=layer.flops * features // whole,
            training_flops=layer.training_flops * features // whole,
        )
        shapes, frozen = ([(*shape[:-1], features) for shape in own] for own in arrays)
        yield with_parameters(part, shapes, frozen)


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
