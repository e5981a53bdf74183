"""Python in place of the command line, for notebooks and scripts.

from experiments import compose, load, train

run = train(compose("model=lenet5", "optim.learning_rate=1e-3"))
run.metrics.plot("epoch", "val/accuracy")
probabilities, names = load("runs/...").predict(images)
"""

import contextlib
import datetime
import functools
import json
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.cli.messages import explain
from experiments.cli.own import config_dir_of, with_own
from experiments.cli.pretrained import with_model_of_run
from experiments.commands.dispatch import as_plain
from experiments.commands.train import train as train_in
from experiments.core import trust
from experiments.core.config import check_config
from experiments.core.transfer import named
from experiments.data.dataset import Arrays, Splits, model_input
from experiments.errors import UserError
from experiments.machine import CONFIG
from experiments.search.configs import Configs, check_added
from experiments.tracking.jsonl import METRICS, NON_FINITE, SUMMARY, read_history, read_mapping
from experiments.tracking.log_file import log_file
from experiments.tracking.tracker import Tracker
from experiments.training.evaluation import Evaluator
from experiments.training.options import check_said, check_sizes
from experiments.training.restored import Restored
from experiments.training.run_folder import UsedFolder, run_folder, split_source
from experiments.training.runtime import set_up_compiler
from experiments.training.saving.config import saved_config

if TYPE_CHECKING:
    import pandas

Config = DictConfig | Mapping[str, Any]
Folder = str | Path | None


class Predicted(NamedTuple):
    """What a run predicts for N inputs.

    Args:
      outputs: what the objective predicts: class probabilities [N, classes], values [N, K] in the
        units of the targets, or of an autoencoder the inputs again.
      names: the likeliest class of each, text [N]; None unless it is a classifier.
    """

    outputs: Any
    names: np.ndarray | None


def compose(*overrides: str, config_dir: str | Path | None = None) -> DictConfig:
    """Return the config that these overrides compose, as on the command line.

    Args:
      overrides: such as `model=lenet5` or `optim.learning_rate=1e-3`.
      config_dir: folder of config files of your own; None: `conf` in the working directory, if
        there is one.

    Raises:
      UserError: there is no such choice or no such key.
    """
    configs = _configs(config_dir, with_model_of_run(overrides))
    try:
        composed = configs.compose()
        check_added(overrides, composed, configs.groups)
        check_said(overrides, composed)
        return _strict(OmegaConf.create(composed))
    except (HydraException, OmegaConfBaseException) as error:
        own = [f"--config-dir={configs.config_dir}"] if configs.config_dir else []
        said = explain(error, [*overrides, *own]) or str(error)
    raise UserError(said.removeprefix("error: "))


@overload
def train(config: Config, folder: Folder = None, *, resume: bool = False) -> "Run": ...


@overload
def train(
    config: Sequence[Config], folder: Folder = None, *, resume: bool = False
) -> "list[Run]": ...


def train(
    config: Config | Sequence[Config], folder: Folder = None, *, resume: bool = False
) -> "Run | list[Run]":
    """Train as `python run.py` does and return the run; how it ended is `summary["status"]`.

    Several configs are trained side by side: those that differ only in numbers that are inputs of
    the compiled program, and in seeds, are one program. A list of them gives a list of runs.

    Interrupted (Ctrl-C, or a notebook's stop button), it saves and returns; `resume=True` goes on.

    Args:
      config: what `compose` returned, or changes of it.
      folder: its run folder; of several configs the folder above theirs, `0`, `1`, ... None makes
        one below `runs`.
      resume: go on with what is in `folder`, by this config.

    Raises:
      UserError: a config is wrong, or a folder holds a run that is not to go on.
    """
    several = isinstance(config, Sequence)
    given: list[Any] = list(config) if several else [config]
    configs: list[Any] = [OmegaConf.create(one) for one in given]
    if not configs:
        return []
    directory = _new_folder(configs[0]) if folder is None else Path(folder)
    folders = [directory / str(i) for i in range(len(configs))] if several else [directory]
    plain = {}
    for own, one in zip(folders, configs, strict=True):
        if one.mode != "train" or one.cluster or one.resume or one.checkpoint:
            raise UserError(
                "train() trains here, with mode=train and without resume=, checkpoint= and "
                "cluster=; to go on with a run: train(config, folder, resume=True)"
            )
        if several and one.name is None:
            one.name = f"{directory.name}-{own.name}"
        trust.allow([CONFIG], one.allow)
        plain[own] = as_plain(one, own, own if resume else None)
        check_config(plain[own])
        check_sizes(plain[own])
    with _shown(), contextlib.ExitStack() as stack:
        for own, one in zip(folders, configs, strict=True):
            used: UsedFolder = "cleared" if one.overwrite else "refused"
            record = {"config": OmegaConf.to_container(one)}
            stack.enter_context(run_folder(own, record, used="continued" if resume else used))
        stack.enter_context(log_file(directory))
        cache, trainers = (
            configs[0].trainer.compilation_cache,
            [p["trainer"] for p in plain.values()],
        )
        set_up_compiler(cache, *trainers)
        train_in(plain, directory, resume=resume)
    runs = [Run(own, one) for own, one in zip(folders, configs, strict=True)]
    return runs if several else runs[0]


def load(
    path: str | Path, *, config_dir: str | Path | None = None, allow: Sequence[str] = ()
) -> "Run":
    """Return a run of a folder, with the weights of its best epoch.

    Its config may name code of this package, of libraries and of your own config files; `allow`
    lists further packages that you trust, such as `["mine"]`, or `["__main__"]` for a notebook's.

    Args:
      path: the run folder, or `<run folder>/checkpoints/<step>` for the weights of that step.
      config_dir: folder of config files of your own.

    Raises:
      UserError: there is no such run, or its config names what it may not.
    """
    configs = _configs(config_dir)
    trust.allow([CONFIG, *map(Path, filter(None, [configs.config_dir]))], list(allow))
    with configs.hydra():
        return Run(Path(path), _strict(saved_config(Path(path), [])))


class Run:
    """A run in its folder: its record, and its weights, which are read when they are asked for.

    Args:
      path: the run folder, or a checkpoint in it.
      config: its config.

    Attributes:
      folder: the run folder.
      config: its config, which `train` takes.
    """

    def __init__(self, path: Path, config: DictConfig):
        self.folder, self.config = split_source(path)[0], config
        self._source = path

    def __repr__(self) -> str:
        return f"<run in {self.folder}: {self.summary.get('status', 'not ended')}>"

    @property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` says: the last line, the best epoch, `test/*`, status; else empty."""
        path = self.folder / SUMMARY
        return read_mapping(path, _with_numbers) if path.exists() else {}

    @property
    def metrics(self) -> "pandas.DataFrame":
        """The lines of `metrics.jsonl`, a column for each metric; NaN where a line has none."""
        import pandas

        return pandas.DataFrame(read_history(self.folder / METRICS))

    @property
    def params(self) -> dict[str, np.ndarray]:
        """The parameters by dotted name, as `freeze` and `mode=summary` name them."""
        return {name: np.asarray(array) for name, array in named(self._run.weights[0]).items()}

    @property
    def model(self) -> nnx.Module:
        """A new model with these weights, to evaluate: `run.model(run.prepare(images))`."""
        return self._run.setup.experiment.trained_model(self._run.hparams, *self._run.weights)

    @property
    def splits(self) -> Splits:
        """The data: `train`, `validation` and `test`; in memory each has `arrays` by name."""
        return self._run.setup.splits

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, or their numbers; empty if there are none."""
        count = self._run.setup.source.spec.num_classes if self._classifies else 0
        return self.splits.class_names or tuple(map(str, range(count)))

    def predict(self, inputs: Any) -> Predicted:
        """Return what the run predicts for inputs in the form of its data.

        Args:
          inputs: as the data set has them: images uint8 [N, H, W, C], what `data=arrays` reads
            [N, ...], or for `data=table` a DataFrame or a dict of columns.

        Raises:
          UserError: they are of another shape or type.
        """
        setup, examples = self._run.setup, Arrays(self._examples(inputs))
        size, sharding = setup.eval_batch_size, setup.alone.batch
        _, outputs = Evaluator(examples, size, sharding, None).outputs(self._run.program)
        if self._classifies:
            return Predicted(outputs, np.array(self.class_names)[outputs.argmax(axis=-1)])
        if setup.objective.kind == "regression" and hasattr(setup.source, "decode"):
            outputs = setup.source.decode(outputs)
        return Predicted(outputs, None)

    def prepare(self, inputs: Any) -> jax.Array:
        """Return inputs, in the form of the data, as `model` reads them: scaled, cropped, ..."""
        experiment, key = self._run.setup.experiment, jax.random.key(0)  # of nothing random
        examples = {name: jnp.asarray(array) for name, array in self._examples(inputs).items()}
        prepared = experiment.prepare(examples, self._run.hparams, key, train=False)
        return model_input(prepared)[1]

    @functools.cached_property
    def _run(self) -> Restored:
        with _shown():
            plain = as_plain(self.config, self.folder, self._source)
            check_config(plain)
            # programs in a folder are executed: it is not that of a run from elsewhere
            folder = "" if jax.config.values["jax_compilation_cache_dir"] else None
            set_up_compiler(folder, plain["trainer"])
            return Restored(plain, self._source, Tracker())

    @property
    def _classifies(self) -> bool:
        return getattr(self._run.setup.objective, "kind", "") == "classification"

    def _examples(self, inputs: Any) -> dict[str, np.ndarray]:
        """Return inputs as examples are stored, with zeros for what only metrics read."""
        source = self._run.setup.source
        name, one = model_input(self._run.setup.evaluation_shapes)
        name, given = source.encode(inputs) if hasattr(source, "encode") else (name, inputs)
        given = np.asarray(given)
        wanted = f"{one.dtype} [N, {', '.join(map(str, one.shape[1:]))}]"
        if given.shape[1:] != one.shape[1:] or not len(given):
            there = f"{given.dtype} {list(given.shape)}"
            raise UserError(f"these inputs are {there}; this run reads {wanted}")
        values = given.astype(one.dtype)
        if one.dtype.kind != "f" and not np.array_equal(values, given):
            raise UserError(
                f"these inputs hold values that are no {one.dtype}, such as {given.max():g}; this "
                f"run reads {wanted}"
            )
        return {
            key: values if key == name else np.zeros((len(values), *one.shape[1:]), one.dtype)
            for key, one in self._run.setup.evaluation_shapes.items()
            if key != "mask"
        }


def _configs(config_dir: Folder, overrides: Sequence[str] = ()) -> Configs:
    """Return the config files, with the user's own as the commands find them."""
    given = [] if config_dir is None else [f"--config-dir={config_dir}"]
    own, _ = config_dir_of(with_own(given))
    return Configs(CONFIG, overrides, own)


def _strict(config: DictConfig) -> DictConfig:
    """Return a config that refuses keys which it does not have, but for callbacks."""
    OmegaConf.set_struct(config, True)
    if config.get("callbacks") is not None:  # which runs of older versions lack
        OmegaConf.set_struct(config.callbacks, False)
    return config


def _new_folder(config: DictConfig) -> Path:
    now, model = datetime.datetime.now(), config.model._target_.rpartition(".")[2].lower()
    return Path(f"runs/{now:%Y-%m-%d}/{now:%H-%M-%S}_{model}_{uuid.uuid4().hex[:6]}")


def _with_numbers(text: str) -> Any:
    def numbers(found: dict[str, Any]) -> dict[str, Any]:
        return {k: float(v) if v in NON_FINITE else v for k, v in found.items()}

    return json.loads(text, object_hook=numbers)


@contextlib.contextmanager
def _shown() -> Iterator[None]:
    """Show what is logged, as a command does, unless the user has set up logging."""
    own, root = logging.getLogger(__name__.partition(".")[0]), logging.root
    level, handlers = own.level, list(root.handlers)
    own.setLevel(logging.INFO)
    if not handlers:  # of the root: else Orbax, as it is imported, would install one for good
        root.addHandler(logging.StreamHandler())
    try:
        yield
    finally:
        own.setLevel(level)
        root.handlers[:] = handlers
