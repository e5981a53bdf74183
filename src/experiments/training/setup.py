"""A config brought to life: data, devices and pure functions, for all trials that can share them.

Trials that differ only in traced numbers, seeds and names are of one *static configuration*. They
share a `Setup`, so that data are read and programs are compiled once.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.core.config import build, hyperparameters, static_key
from experiments.core.experiment import Experiment, State
from experiments.core.metrics import complaint_about
from experiments.core.programs import Programs
from experiments.core.rng import root_key
from experiments.data.dataset import Stream, resolve_batch_size, some_examples
from experiments.errors import UserError
from experiments.objectives.metrics import monitored
from experiments.objectives.units import units_of
from experiments.training.devices.layout import Layout
from experiments.training.distributed import put
from experiments.training.evaluation import Data, Evaluator, Split
from experiments.training.feed import Feed, HostFeed, ResidentFeed, StreamedFeed
from experiments.training.options import Trainer, surprises
from experiments.training.runtime import data_mesh, devices_for, worth_sharing
from experiments.training.step import Compiled
from experiments.viz.flops import Cost, cost, work

log = logging.getLogger(__name__)

Shapes = dict[str, jax.ShapeDtypeStruct]

UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
    TypeError,
    ValueError,
)


class Traced(NamedTuple):
    """The results of tracing a program."""

    inputs: tuple[str, ...]  # the hyperparameters that it can take as inputs
    cost: Cost  # of a training step of one trial
    state: State  # shapes and dtypes of a trial's


class Setup:
    """A static configuration: its data, its pure functions and its compiled programs.

    Args:
      config: of any trial of it.
      training: whether trials are to be trained; else their weights are evaluated only.
      resumed: whether they have begun, maybe on another machine.
      tried: whether it is tried for its size only, and says nothing.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        data: Data,
        *,
        training: bool = True,
        resumed: bool = False,
        tried: bool = False,
    ):
        config = data.weighted(config)
        self.config, self.data, self.training = config, data, training
        self.splits = data.splits
        self.trainer: Trainer = build(config["trainer"])
        self.source: Any = build(config["data"])
        self.streamed = data.streamed
        size, examples = self.source.batch_size, len(self.splits.train)
        # an evaluation may be of fewer examples than a batch of the training had
        self.batch_size = resolve_batch_size(size if training else min(size, examples), examples)
        strict = training and not resumed
        self.data_mesh = data_mesh(self.trainer.devices, self.batch_size, strict=strict)
        # one shape for validation and test: one compilation, and a whole number of rows per device
        longest = max(len(self.splits.validation), len(self.splits.test))
        wanted = self.source.eval_batch_size
        wanted = longest if wanted == -1 else min(wanted, longest)
        self.divided = self.trainer.sharding == "fsdp" and self.data_mesh.size > 1
        self.eval_batch_size = -(-wanted // self.data_mesh.size) * self.data_mesh.size
        steps_per_epoch = len(self.splits.train) // self.batch_size
        if self.trainer.steps_per_epoch is not None:
            steps_per_epoch = min(steps_per_epoch, self.trainer.steps_per_epoch)
        self.periods = self.trainer.periods(steps_per_epoch)
        self.experiment = Experiment(
            config,
            self.source.spec,
            self.source.pipeline,
            steps_per_epoch,
            self.periods.total,
            functools.partial(some_examples, self.splits.train),
        )
        self.objective = self.experiment.objective(hyperparameters(config))
        self.programs = Programs(config, self._made_from, work)
        self.key = root_key(0)  # whose shape is that of every trial's
        self.compiled_for: dict[tuple[Layout, int], Compiled] = {}
        self.widths: dict[Layout, int] = {}  # the fastest that was found
        for line in () if tried else surprises(self.experiment, training=training):
            log.warning(line)
        if training:  # what the config names is checked before anything is trained
            _ = self._shares
            if self.config.get("metrics"):
                self.experiment.measured(self.evaluation_shapes, {})
            self._leave_devices()

    def inputs_of(self, config: Mapping[str, Any]) -> dict[str, np.float32]:
        """Return the numbers of a trial's config that its program takes as inputs."""
        numbers = hyperparameters(self.data.weighted(config))
        return {name: np.float32(numbers[name]) for name in self.traced.inputs}

    def layout(self, trials: int, *, own_batches: bool = False) -> Layout:
        """Return where so many trials go: as many rows on each device, or each group of them.

        The devices of a trial are those that `trainer.devices` asks for; else a trial is divided
        among all of them, or has one.
        """
        if trials == 1:
            return Layout(self.data_mesh, 1, divided=self.divided)
        each = self.data_mesh.size if self.divided or self.trainer.devices is not None else 1
        groups = devices_for(trials, self.traced.cost, each)
        rows = -(-trials // len(groups)) * len(groups)
        return Layout(Mesh(groups, ("trial", "data")), rows, own_batches, self.divided)

    @property
    def alone(self) -> Layout:
        """Where a trial goes that this process evaluates alone."""
        return Layout(self.data_mesh.local_mesh, 1, divided=self.divided)

    def smaller(self, layout: Layout, trials: int) -> Layout:
        """Return where the trials go that are left of a stack.

        Devices go where more than half have nothing to do: on a CPU they would be in the way of the
        others. A stream stays with its readers, and so with its devices.
        """
        if not self.streamed and (trials == 1 or trials <= layout.mesh.shape["trial"] // 2):
            return self.layout(trials, own_batches=layout.own_batches)
        return layout.halved(trials)

    def feed(self, layout: Layout, seeds: Sequence[int]) -> Feed:
        """Return the training data for a stack; `seeds` are those of the order."""
        split, steps = self.splits.train, self.experiment.steps_per_epoch
        if isinstance(split, Stream):
            return StreamedFeed(split, self.batch_size, layout, seeds[0])
        arrays: Any = split.arrays if self.streamed else self.data.resident(layout.everywhere)
        resident = ResidentFeed(arrays, steps, layout, seeds, split.ordered, self._shares)
        return HostFeed(resident, self.batch_size, layout) if self.streamed else resident

    @property
    def _shares(self) -> np.ndarray | None:
        """The probabilities that examples are drawn by; None: each once an epoch."""
        return self.data.balanced if getattr(self.source, "sampler", "") == "balanced" else None

    def compiled(self, layout: Layout, width: int = 1) -> Compiled:
        """Return the programs for a stack; they are compiled once, and trained with by others."""
        key = (layout, width)
        if key not in self.compiled_for:
            self.compiled_for[key] = Compiled(self, layout, width)
        return self.compiled_for[key]

    def prepare_evaluation(self) -> None:
        """Begin to compile for the evaluation of a trial by itself."""
        compiled = self.compiled(self.layout(1))
        compiled.prepare(training=False)
        compiled.compile_evaluation()

    def evaluator(self, split: Split, layout: Layout) -> Evaluator:
        """Return the evaluation of a split for a stack."""
        limit = self.trainer.eval_batches
        return self.data.evaluator(split, self.eval_batch_size, layout.batch, limit)

    def program(self, weights: Any, hparams: Mapping[str, np.float32]) -> Callable:
        """Return the compiled `evaluate(batch) -> (sums, predictions)` of a stack of one.

        Args:
          weights: (params, model_state) of a trial, on the host.
          hparams: its numbers.
        """
        stack = jax.tree.map(lambda leaf: np.asarray(leaf)[None], (weights, hparams))
        stack = jax.tree.map(put, stack, self.alone.state(stack))
        evaluate = self.compiled(self.alone).evaluate
        return lambda batch: evaluate(stack[0], batch, stack[1])

    @functools.cached_property
    def monitor(self) -> tuple[str, str]:
        """The validation metric that says which epoch is best, and "min", "max" or "last".

        Raises:
            UserError: there is no such metric.
        """
        wanted = self.trainer.monitor
        if wanted is not None and (complaint := complaint_about(self.experiment, wanted)):
            raise UserError(f"trainer.monitor={wanted}: the validation has {complaint}")
        return monitored(self.objective.monitor, wanted, self.trainer.monitor_mode)

    @functools.cached_property
    def value_units(self) -> dict[str, str]:
        """The units of the values that are logged, by name, where they need to be said."""
        objective, units, stored = self.objective, self.trainer.units, self.source.spec.stored
        return units_of(objective, units, stored, self.splits.found, self.config["data"])

    @functools.cached_property
    def static_key(self) -> str:
        """A text that is equal for configs of this static configuration."""
        return static_key(self.config, self.traced.inputs)

    @property
    def shapes(self) -> State:
        """Shapes and dtypes of a trial's state."""
        return self.traced.state

    @functools.cached_property
    def traced(self) -> Traced:
        """The hyperparameters that can be inputs, the cost of a step, and the state's shapes."""
        recall, kind = self.programs.recall, "training" if self.training else "evaluation"
        every = static_key(self.config, hyperparameters(self.config))
        inputs = recall(f"{kind}-inputs", every, lambda: self._found.inputs)
        return recall(kind, static_key(self.config, inputs), lambda: self._found)

    @functools.cached_property
    def _found(self) -> Traced:
        """What tracing finds out: the inputs by trying.

        What the program needs the value of, such as a width, is a constant of it.
        """
        candidates = {n: np.float32(v) for n, v in hyperparameters(self.config).items()}
        try:
            return self._trace(candidates)
        except UNTRACEABLE:
            alone = {n: v for n, v in candidates.items() if self._traces({n: v})}
            for name in sorted(candidates.keys() - alone.keys()):
                log.debug("%s is a constant of the program: it cannot be traced", name)
            return self._trace(alone)

    def _traces(self, hparams: dict[str, np.float32]) -> bool:
        try:
            self._trace(hparams)
        except UNTRACEABLE:
            return False
        return True

    def _trace(self, hparams: dict[str, np.float32]) -> Traced:
        names, state = tuple(hparams), self.experiment.abstract_state(hparams)
        if not self.training:
            weights, batch = self.experiment.weights(state), self.evaluation_shapes
            jax.eval_shape(self.experiment.eval_step, *weights, batch, hparams)
            return Traced(names, Cost(0, 0), state)
        # on the mesh of a trial, whose axes are part of what JAX knows the trace again by
        everywhere = NamedSharding(self.data_mesh, PartitionSpec())
        flag = jax.ShapeDtypeStruct((), bool)
        arguments = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
            (state, self._batch(self.batch_size, "train"), hparams, self.key, flag),
        )
        with self.layout(1).traced():
            traced = jax.jit(self.experiment.step).trace(*arguments)
        return Traced(names, cost(traced.jaxpr.jaxpr), state)

    @property
    def _made_from(self) -> tuple:
        """What programs follow from besides the config; a pipeline can hold statistics of data."""
        experiment = self.experiment
        pipeline = experiment.pipeline
        if hasattr(pipeline, "augment"):  # which is of the config, and whose numbers are inputs
            pipeline = dataclasses.replace(pipeline, augment=None)
        return (
            *(experiment.steps_per_epoch, experiment.total_steps, experiment.spec, pipeline),
            *(self.streamed, self.batch_size, self.training_shapes, self.evaluation_shapes),
        )

    @property
    def training_shapes(self) -> Shapes:
        """Shapes of what batches are drawn from: the whole split, or of a stream one batch."""
        size = self.batch_size if self.streamed else len(self.splits.train)
        return self._batch(size, "train")

    @property
    def evaluation_shapes(self) -> Shapes:
        """Shapes of a batch of an evaluation."""
        mask = jax.ShapeDtypeStruct((self.eval_batch_size,), np.float32)
        return self._batch(self.eval_batch_size, "validation") | {"mask": mask}

    def _batch(self, size: int, split: Split) -> Shapes:
        data = getattr(self.splits, split)
        if isinstance(data, Stream):
            one = self.source.spec.stored
        else:
            one = {name: (array.shape[1:], array.dtype) for name, array in data.arrays.items()}
        return {
            name: jax.ShapeDtypeStruct((size, *shape), np.dtype(dtype))
            for name, (shape, dtype) in one.items()
        }

    def _leave_devices(self) -> None:
        """Have one device per process train a trial whose steps are too small to be shared."""
        mesh, wanted = self.data_mesh, self.trainer
        if wanted.sharding == "fsdp" and mesh.size == 1:
            log.warning("trainer.sharding=fsdp divides nothing: there is one device")
        open_to_choice = wanted.devices is None and not self.divided
        if open_to_choice and not worth_sharing(mesh, lambda: self.traced.cost):
            self.data_mesh = data_mesh(1, self.batch_size)


class Setups:
    """The setups of a process: of every static configuration one.

    Args:
      resumed: whether the trials have begun, maybe on another machine.
    """

    def __init__(self, *, resumed: bool = False) -> None:
        self.resumed = resumed
        self._data: dict[str, Data] = {}
        self._inputs: dict[str, tuple[str, ...]] = {}  # by the key as if all could be traced
        self._setups: dict[str, Setup] = {}

    def of(self, config: Mapping[str, Any]) -> Setup:
        """Return the setup of a trial's config, made where there is none."""
        data = self._data_of(config)
        config = data.weighted(config)
        untried = static_key(config, hyperparameters(config))
        if untried not in self._inputs:
            setup = Setup(config, data, resumed=self.resumed)
            self._inputs[untried] = setup.traced.inputs
            self._setups.setdefault(setup.static_key, setup)
        key = static_key(config, self._inputs[untried])
        if key not in self._setups:
            self._setups[key] = Setup(config, data, resumed=self.resumed)
        return self._setups[key]

    def _data_of(self, config: Mapping[str, Any]) -> Data:
        own = {**config["data"], "augment": None, "sampler": None}
        key = json.dumps(own, sort_keys=True)
        if key not in self._data:
            self._data[key] = Data(build(config["data"]).load())
        return self._data[key]
