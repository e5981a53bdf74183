"""What every mode of a run needs before its first step: data, devices, the pure core."""

import functools
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.core.config import build
from experiments.core.experiment import Experiment, hyperparameters
from experiments.core.rng import root_key
from experiments.data.dataset import Splits, Stream, some_examples
from experiments.errors import UserError
from experiments.training.devices import of_one_run, put_to_read
from experiments.training.evaluation import Evaluator
from experiments.training.feed import ResidentFeed, StreamedFeed, resolve_batch_size
from experiments.training.kept import Kept, static_key
from experiments.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """A config brought to life; nothing is compiled yet."""

    config: Mapping[str, Any]
    trainer: Trainer
    data: Any
    splits: Splits
    mesh: Mesh
    experiment: Experiment
    hparams: dict[str, np.float32]
    key: jax.Array
    batch_size: int
    eval_batch_size: int
    kept: Kept
    static: str  # what runs that can share a program have in common
    untried: str  # the same if every hyperparameter can be traced

    @property
    def shuffle_seed(self) -> int:
        """What the order of the training data follows from."""
        own = self.trainer.shuffle_seed
        return self.config["seed"] if own is None else own

    @property
    def replicated(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def split_over_devices(self) -> NamedSharding:
        """A part of the batch on every device."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    @functools.cached_property
    def feed(self) -> ResidentFeed | StreamedFeed:
        """The training data, as one run shares them among its devices."""
        streamed = isinstance(self.splits.train, Stream)
        return self.feed_on(self.split_over_devices if streamed else self.replicated)

    def feed_on(self, sharding: NamedSharding) -> ResidentFeed | StreamedFeed:
        """The training data, or batches of a stream of them, held by the devices so."""
        split, seed = self.splits.train, self.shuffle_seed
        if isinstance(split, Stream):
            steps = self.experiment.steps_per_epoch
            return StreamedFeed(split, self.batch_size, steps, seed, sharding)
        arrays = self.kept.once(
            ("resident", self._data_key, sharding),
            lambda: {name: put_to_read(array, sharding) for name, array in split.arrays.items()},
        )
        key = self.kept.once(("key", seed), lambda: root_key(seed))
        return ResidentFeed(arrays, self.batch_size, key, sharding, split.ordered)

    def evaluator(self, split: str) -> Evaluator:
        """The evaluation of the split `validation` or `test`."""
        return self.kept.once(
            ("evaluator", split, self.trainer.eval_batches, self._data_key),
            lambda: Evaluator(
                getattr(self.splits, split),
                self.eval_batch_size,
                self.split_over_devices,
                self.trainer.eval_batches,
                self.config["seed"],
            ),
        )

    @property
    def _data_key(self) -> str:
        return json.dumps([{**self.config["data"], "augment": None}, self.trainer.devices])


def open_session(config: Mapping[str, Any], kept: Kept | None = None) -> Session:
    """Reads the data and sets up the experiment that a config describes.

    What runs of the same process can share is taken from `kept`, or put there.
    """
    kept = kept or Kept()
    trainer: Trainer = build(config["trainer"])
    data = build(config["data"])
    splits = kept.once(json.dumps({**config["data"], "augment": None}), data.load)
    batch_size = resolve_batch_size(data.batch_size, len(splits.train))
    mesh = device_mesh(trainer.devices, batch_size)
    # one shape for validation and test: one compilation, and a whole number of rows a device
    longest = max(len(splits.validation), len(splits.test))
    eval_batch_size = longest if data.eval_batch_size == -1 else min(data.eval_batch_size, longest)
    eval_batch_size = -(-eval_batch_size // mesh.size) * mesh.size
    steps_per_epoch = len(splits.train) // batch_size
    if trainer.steps_per_epoch is not None:
        steps_per_epoch = min(steps_per_epoch, trainer.steps_per_epoch)
    total_steps = steps_per_epoch * trainer.epochs
    candidates = hyperparameters(config)
    untried = static_key(config, candidates)
    names = kept.get(("traced", untried))
    names = tuple(candidates) if names is None else names
    static = untried if len(names) == len(candidates) else static_key(config, names)
    hparams = {name: np.float32(candidates[name]) for name in names}

    def experiment() -> Experiment:
        examples = functools.partial(some_examples, splits.train)
        made = Experiment(config, data.spec, data.pipeline, steps_per_epoch, total_steps, examples)
        if made.input_shape != tuple(data.spec.input_shape):
            shapes = (data.spec.input_shape, made.input_shape)
            small, large = ("x".join(map(str, shape[:2])) for shape in shapes)
            name = config["model"]["_target_"].rsplit(".", 1)[-1]
            log.info("%s needs larger images: %s is resized to %s", name, small, large)
        return made

    seed = config["seed"]
    key = kept.once(("key", seed), lambda: root_key(seed))
    return Session(
        config,
        trainer,
        data,
        splits,
        mesh,
        kept.once(("experiment", static), experiment),
        hparams,
        key,
        batch_size,
        eval_batch_size,
        kept,
        static,
        untried,
    )


def device_mesh(requested: int | None, batch_size: int) -> Mesh:
    """The devices that share each batch, as many a process, as a mesh with the axis `data`."""
    devices, processes = of_one_run(), jax.process_count()
    if requested is not None and requested > len(devices):
        raise UserError(f"trainer.devices={requested}: this machine has {len(devices)}")
    least = (requested or 1) * processes
    if batch_size % least:
        what = f"{processes} nodes cannot share" if requested is None else ""
        raise UserError(
            f"{what or f'trainer.devices={requested} does not divide'} the batch of {batch_size}; "
            f"use a data.batch_size that is a multiple of {least}"
        )
    share = batch_size // processes
    count = requested or max(n for n in range(1, len(devices) + 1) if share % n == 0)
    if count < len(devices) and requested is None:
        log.warning(
            "using %d of %d devices: a batch of %d does not divide evenly over more",
            count,
            len(devices),
            batch_size,
        )
    chosen = [
        device
        for process in range(processes)
        for device in [d for d in jax.devices() if d.process_index == process][:count]
    ]
    return Mesh(np.asarray(chosen), ("data",))
