"""The weights of earlier runs: to evaluate with, and to start from in the place of new ones."""

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from flax import nnx

from experiments.core.callback import RunInfo, callback_nodes
from experiments.core.config import ARTIFACT, build
from experiments.core.experiment import Experiment
from experiments.core.names import locate
from experiments.core.params import count_parameters, merged
from experiments.core.rng import root_key, stream
from experiments.core.schedules import SCALE, Plateau
from experiments.core.transfer import Agreement, agreement, named
from experiments.data.dataset import Splits
from experiments.errors import UserError
from experiments.machine import CONFIG
from experiments.models.torchvision import read_published
from experiments.objectives.losses import with_class_weights
from experiments.objectives.units import in_units
from experiments.tracking.jsonl import SUMMARY, read_mapping
from experiments.tracking.tracker import Tracker, Trackers
from experiments.tracking.wandb import STATE, Wandb
from experiments.tracking.wandb_client import downloaded
from experiments.training.distributed import put_to_read
from experiments.training.evaluation import Data, Measured, Predictions, Split
from experiments.training.run_folder import CHECKPOINTS, split_source
from experiments.training.saving.config import saved_config
from experiments.training.saving.trials import load, load_weights
from experiments.training.setup import Setup

log = logging.getLogger(__name__)

SHOWN = 6  # names in a line of the log
HEAD = 2  # arrays, which are new where there are other classes
Found = dict[str, np.ndarray]


class Restored:
    """An earlier run with the weights that `checkpoint=` names.

    Args:
      config: of the run.
      source: its folder, which stands for the best epoch, or `<run folder>/checkpoints/<step>`;
        None: the weights are those that `model.pretrained` names, as they are.
      terminal: shows what is going on.
      splits: what is evaluated; None reads the data of the run.

    Attributes:
      weights: (params, model_state), on the host.
      state: these weights with what the optimizer knew when they were saved, and the step.
      hparams: the numbers that its programs take.
      progress: what the host knew of the run when they were saved.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        source: Path | None,
        terminal: Tracker,
        splits: Splits | None = None,
    ):
        terminal.status("reading data")
        if splits is not None:  # of new files no loss is computed: any weights of classes will do
            classes = build(config["data"]).spec.num_classes
            config = with_class_weights(config, lambda: [1] * classes)
        self.config = config
        splits = splits or build(config["data"]).load()
        self.setup = setup = Setup(config, Data(splits), training=False)
        self.hparams, self.progress = setup.inputs_of(config), {}
        if source is None:
            found, key = pretrained_weights(setup), root_key(config["seed"])
            self.weights = setup.experiment.init_weights(self.hparams, key, found)
            self.state = setup.experiment.begin(self.weights, self.hparams)
            return
        folder, step = split_source(source)
        weights_of = setup.experiment.weights
        (saved,) = load([folder], [(setup.shapes, weights_of(setup.shapes))], step)
        self.weights = saved.best if step is None else weights_of(saved.state)
        self.state = saved.state._replace(params=self.weights[0], model_state=self.weights[1])
        self.progress = saved.progress
        if SCALE in self.hparams:
            self.hparams[SCALE] = np.float32(Plateau(*self.progress["plateau"]).scale)

    @functools.cached_property
    def examined(self) -> Callable:
        """The compiled `examined(batch)`: every metric [batch] by name, and the codes [batch, n].

        For models that make codes.
        """
        experiment = self.setup.experiment

        @jax.jit
        def examined(weights: Any, batch: Any, hparams: Any) -> tuple[Any, jax.Array]:
            key = jax.random.key(0)
            inputs = experiment.prepare(batch, hparams, key, train=False)
            rngs = nnx.Rngs(sample=stream(key, "sample"))
            model, objective = experiment.trained_model(hparams, *weights), self.setup.objective
            values, _ = objective(model, inputs, rngs, None)
            values = in_units(values, objective, experiment.units)
            return values, objective.codes(model, inputs, rngs)

        return lambda batch: examined(self.weights, batch, self.hparams)

    @functools.cached_property
    def program(self) -> Callable:
        """The compiled `evaluate(batch) -> (sums, predictions)` of a stack of one."""
        return self.setup.program(self.weights, self.hparams)

    def predict(self, split: Split) -> tuple[Measured, Predictions]:
        """Return every metric over a split, and its predictions."""
        evaluator = self.setup.evaluator(split, self.setup.layout(1))
        return evaluator.predict(self.program, self.setup.experiment.metrics)

    def batches(self, split: Split) -> Iterable[dict[str, jax.Array]]:
        """Return the batches of a split, each with a `mask`."""
        return self.setup.evaluator(split, self.setup.layout(1)).batches()

    def outputs(self, batch: Mapping[str, np.ndarray | jax.Array]) -> Any:
        """Return the objective's predictions for a batch of the size of an evaluation."""
        sharding = self.setup.layout(1).batch
        there = {name: put_to_read(array, sharding) for name, array in batch.items()}
        return jax.tree.map(lambda leaf: leaf[0], self.program(there)[1])


@contextlib.contextmanager
def in_wandb(run: Restored, folder: Path) -> Iterator[tuple[Trackers, int]]:
    """Yield the run in W&B and the step to log at; where it is not there, what takes all the same.

    Args:
      folder: its run folder, which is this process's own.
    """
    setup, summary = run.setup, folder / SUMMARY
    nodes = callback_nodes(run.config).values() if (folder / STATE).is_file() else ()
    found: list[Wandb] = [
        build({**node, "alert": False}) for node in nodes if locate(node["_target_"]) is Wandb
    ]
    tracker = Trackers(found)  # for which an error of the client is one warning
    tracker.start(
        RunInfo(
            directory=folder,
            name=run.config["name"],
            config={**run.config, "input": None},
            total_steps=setup.experiment.total_steps,
            steps_per_epoch=setup.experiment.steps_per_epoch,
            batch_size=setup.batch_size,
            parameters=count_parameters(run.weights[0]),
        )
    )
    yield tracker, max((one.next_step for one in found), default=0)
    status = read_mapping(summary)["status"] if summary.is_file() else "interrupted"
    tracker.finish({}, status)


def pretrained_weights(setup: Setup) -> Found | None:
    """Return the arrays that `model.pretrained` names, by dotted name, and say which of them fit.

    Raises:
        UserError: there are no such weights, or none of them fits.
    """
    source = setup.config["model"].get("pretrained")
    if source is None:
        return None
    found = read(source, setup.config["model"])
    wanted = merged(setup.shapes.params, setup.shapes.model_state)
    result = check_fitting(f"model.pretrained={source}", found, wanted)
    for line in report(result, named(wanted)):
        log.info("%s: %s", source, line)
    if different := differences(source, setup.config["model"]):
        advice = "leave out model= and model.* to have it as it was"
        log.warning("%s: its model had %s; %s", source, _some(different), advice)
    if len(result.new) > HEAD and (better := better_choice(source, setup, len(result.new))):
        log.warning("%s: model=%s has more of these weights", source, better)
    return found


def differences(source: str, model: Mapping[str, Any]) -> list[str]:
    """Return what a run's model of the same class had otherwise; for other weights nothing."""
    from omegaconf import OmegaConf  # a worker of a search does without

    try:
        folder, _ = split_source(Path(source))
        config: Any = OmegaConf.to_container(saved_config(folder, []), resolve=True)
    except UserError:
        return []
    then = config["model"]
    if then["_target_"] != model["_target_"]:
        return []
    changed = [key for key in {**then, **model} if then.get(key) != model.get(key)]
    return [f"{k}={then.get(k)} (here {model.get(k)})" for k in changed if k != "pretrained"]


def better_choice(source: str, setup: Setup, new: int) -> str | None:
    """Return the shipped model of the same kind in which the fewest arrays stay new, if one has."""
    config, data, found = setup.config, setup.source, None
    for choice, model in choices_of_kind(config["model"]):
        other = Experiment({**config, "model": model}, data.spec, data.pipeline, 1, 1)
        try:
            shapes = other.abstract_state({})
        except UserError:  # other keys of the config, such as `freeze`, name layers that it lacks
            continue
        wanted = merged(shapes.params, shapes.model_state)
        left = len(agreement(read(source, model), wanted).new)
        if left < new:
            new, found = left, choice
    return found


def choices_of_kind(model: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the shipped models that are other settings of the same class: names and configs."""

    def config_of(name: str) -> dict[str, Any]:
        own = yaml.safe_load((CONFIG / "model" / f"{name}.yaml").read_text())
        for base in own.pop("defaults", []):
            if isinstance(base, str) and base != "_self_":
                own = config_of(base) | own
        return own

    for path in sorted((CONFIG / "model").glob("[!_]*.yaml")):
        config = config_of(path.stem)
        if config["_target_"] == model["_target_"]:
            yield path.stem, {**config, "pretrained": model["pretrained"]}


def check_fitting(source: str, found: Mapping[str, Any], wanted: Any) -> Agreement:
    """Compare arrays, or their shapes, with those of a model.

    Raises:
        UserError: none of them fits.
    """
    result = agreement(found, wanted)
    if not result.fitting:
        raise UserError(
            f"{source}: none of its weights fits the model\n"
            f"it has {_some(found)}; the model has {_some(named(wanted))}"
        )
    return result


def read(source: str, model: dict[str, Any]) -> Found:
    """Return the weights in a run folder, a checkpoint of it or a `.safetensors` file, by name.

    Or in an artifact of W&B's that holds checkpoints or such a file, `wandb:project/name:best`.

    Raises:
        UserError: `source` is none of these, or cannot be read.
    """
    if source.startswith(ARTIFACT):
        with downloaded(source, CHECKPOINTS) as folder:
            published = sorted((folder / CHECKPOINTS).glob("*.safetensors"))
            return read(str(published[0]), model) if published else _saved(folder, None)
    path = Path(source)
    if path.suffix == ".safetensors":
        return read_published(path, model)
    if path.suffix in (".pt", ".pth", ".bin"):
        raise UserError(
            f"model.pretrained={source}: a pickle runs code when it is read; save it as "
            f"safetensors: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        )
    return _saved(*split_source(path))


def _saved(folder: Path, step: int | None) -> Found:
    """Return the weights that were saved in a folder."""
    weights = load_weights(folder, step)
    return {n: np.asarray(array) for part in weights for n, array in named(part).items()}


def report(result: Agreement, wanted: dict[str, Any]) -> Iterable[str]:
    """Yield what was loaded, skipped and new, in plain lines."""

    def values(names: Iterable[str]) -> int:
        return sum(math.prod(wanted[name].shape) for name in names)

    yield (
        f"loaded {len(result.fitting)} of {len(wanted)} arrays, "
        f"{values(result.fitting):,} of {values(wanted):,} values"
    )
    if result.of_other_shape:
        pairs = (f"{n} {a} (here {b})" for n, (a, b) in result.of_other_shape.items())
        yield f"skipped, of another shape: {_some(pairs)}"
    if result.unwanted:
        yield f"skipped, not in this model: {_some(result.unwanted)}"
    if result.new:
        yield f"new: {_some(result.new)}"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
