"""Helpers that tests import by name."""

import contextlib
import copy
import functools
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from experiments.machine import StopRequest
from experiments.tracking.jsonl import METRICS, JsonLines, read_history
from experiments.tracking.tracker import Tracker, Trackers
from experiments.training.loop import fit
from experiments.training.saving.checkpoints import Checkpoints
from experiments.training.saving.trials import load
from experiments.training.setup import Setups
from experiments.training.trial import Trial

ROOT = Path(__file__).resolve().parent.parent
NAME = "é = , ( ) [ ; & # ~ ' x"  # of a folder: what shells, YAML and Hydra read in their own way
TINY = [
    "model.hidden=[8]",
    "data.limit=128",
    "trainer.epochs=3",
    "trainer.figures=false",
    "logger=none",
]
NO_CACHE = 'trainer.compilation_cache=""'
SMALL = ["model.hidden=[16]", "trainer.figures=false", "trainer.log_every=8"]

LEARNING_RATE = {
    "optim.learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 0.1}
}

RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # of trials side by side
TIMES = {"examples_per_second", "seconds", "training_seconds"}


def composed(*overrides: str) -> dict:
    """The config that these overrides compose, as `run.py` would pass it on."""
    return copy.deepcopy(_composed(overrides))


@functools.cache
def _composed(overrides: tuple[str, ...]) -> dict:
    values = [o for o in overrides if re.match(r"[a-z_]+(\.[\w.]+)?=", o) and not _group_of(o)]
    config = copy.deepcopy(_chosen(tuple(o for o in overrides if o not in values)))
    for value in OverridesParser.create().parse_overrides(values):
        OmegaConf.update(config, value.key_or_group, value.value(), merge=True)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return plain | {"name": "test"}


@functools.cache
def _chosen(overrides: tuple[str, ...]) -> DictConfig:
    """Compose choices of groups: each in its place of the default config, if that is all it does.

    Hydra takes long to compose; `test_config` holds what it composes against this.
    """
    groups = {_group_of(o): choice_alone(_group_of(o), o.partition("=")[2]) for o in overrides}
    if len(groups) < len(overrides) or None in groups.values():
        return by_hydra(overrides)
    config = copy.deepcopy(by_hydra(()))
    for group, alone in groups.items():
        config[group] = alone
    return config


@functools.cache
def by_hydra(overrides: tuple[str, ...]) -> DictConfig:
    """Compose choices of groups as Hydra does."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def _group_of(override: str) -> str:
    """The config group that an override makes a choice of, if it does."""
    group = override.partition("=")[0]
    return group if group.isidentifier() and (ROOT / "conf" / group).is_dir() else ""


def choice_alone(group: str, choice: str) -> DictConfig | None:
    """What a choice makes of its group, if it changes no other and Hydra is not needed; or None."""
    part = _part(group, choice) if group in by_hydra(()) else None
    return None if part is None else OmegaConf.merge(part, _file("config").get(group) or {})


def _part(group: str, choice: str) -> DictConfig | None:
    """What the file of a choice, and those that it builds on, say of its group alone, or None."""
    path = ROOT / "conf" / group / f"{choice}.yaml"
    if not group or not path.is_file() or "@package" in path.read_text():
        return None
    own = copy.deepcopy(_file(f"{group}/{choice}"))
    bases = own.pop("defaults", ["_self_"])
    if not all(isinstance(base, str) and base.isidentifier() for base in bases):
        return None
    parts = [own if base == "_self_" else _part(group, base) for base in bases]
    return None if None in parts else OmegaConf.merge(*parts)


@functools.cache
def _file(name: str) -> DictConfig:
    return OmegaConf.load(ROOT / "conf" / f"{name}.yaml")


def run_command(*arguments: str) -> int:
    """The exit code of `run.py` in this process, with no cache of its own for programs."""
    from experiments.cli import run
    from experiments.cli.main import command_line

    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [str(ROOT / "run.py"), NO_CACHE, *arguments])
        patch.setattr("sys.path", [*sys.path])  # to which the user's own folders are added
        patch.setenv("HYDRA_FULL_ERROR", "0")  # so that it is restored afterwards
        return command_line(run.main)


@contextlib.contextmanager
def logging_restored() -> Iterator[None]:
    """Ends what Hydra logs to on the terminal of a test."""
    before, level = list(logging.root.handlers), logging.root.level
    yield
    logging.root.setLevel(level)
    for handler in set(logging.root.handlers) - set(before):
        logging.root.removeHandler(handler)
        handler.close()


def trial_of(
    config: dict,
    directory: Path,
    *trackers: Tracker,
    stop: StopRequest | None = None,
    setups: Setups | None = None,
) -> Trial:
    """A trial of a config in a folder, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    every = Trackers([JsonLines(), *trackers])
    setup = (setups or Setups()).of(config)
    return Trial(setup, config, directory, every, stop or StopRequest())


def choices(group: str) -> list[str]:
    """The shipped choices of a config group; a new file is tested without a new line."""
    names = [path.stem for path in (ROOT / "conf" / group).glob("*.yaml")]
    return sorted(name for name in names if not name.startswith("_"))


def supervised_losses() -> list[str]:
    """The shipped losses of outputs and targets, without those of adversarial networks."""
    paths = {name: ROOT / "conf/loss" / f"{name}.yaml" for name in choices("loss")}
    return [name for name, path in paths.items() if "objectives.losses" in path.read_text()]


def alone(trial: Trial, **options: Any) -> dict:
    """The summary of a trial trained by itself, which is not tested."""
    (summary,) = fit([trial], trial.directory, test=False, **options)
    return summary


def saved_of(trial: Trial) -> tuple:
    """(state, best weights) of a trial as saved."""
    shapes = trial.setup.shapes
    (saved,) = load([trial.directory], [(shapes, trial.setup.experiment.weights(shapes))])
    return saved.state, saved.best


def history_of(trial: Trial) -> list[dict]:
    """The record of a trial, line by line."""
    return read_history(trial.directory / "metrics.jsonl")


def close(a: Any, b: Any, **tolerance: float) -> None:
    """Two trees are the same but for rounding."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def equal(a: Any, b: Any) -> None:
    """Two trees are the same, bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, a, b)


def same_lines(a: Trial, b: Trial) -> None:
    """Two trials have the same record but for their times."""
    for one, other in zip(history_of(a), history_of(b), strict=True):
        timeless = [{k: v for k, v in x.items() if "second" not in k} for x in (one, other)]
        assert timeless[0].keys() == timeless[1].keys()
        for name, value in timeless[0].items():
            assert timeless[1][name] == pytest.approx(value, rel=1e-6)


def shared_data() -> Path | None:
    """A folder with prepared MNIST and CIFAR-10, or None."""
    for folder in (os.environ.get("TFDS_DATA_DIR"), ROOT.parent / "shared/tensorflow_datasets"):
        if folder and (Path(folder) / "mnist").is_dir():
            return Path(folder)
    return None


def timeless(lines: Iterable[dict]) -> list[dict]:
    """Lines of a run without what the clock says."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def lines_of(folder: Path) -> list[dict]:
    """The record of a run, line by line, without what the clock says."""
    return timeless(map(json.loads, (folder / METRICS).read_text().splitlines()))


def weights_of(folder: Path) -> list[np.ndarray]:
    """Everything in the state of a run's newest checkpoint."""
    import orbax.checkpoint as ocp  # takes seconds to import

    newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    state = ocp.StandardCheckpointer().restore((newest / "state").absolute())
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


class Killed(BaseException):
    """Nothing that a run could handle."""


@contextlib.contextmanager
def killed_after_saving(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[None]:
    """Ends what runs within at once when its checkpoint of `step` is on disk; it must get there."""
    original = Checkpoints.save

    def save(self, at, *rest):
        original(self, at, *rest)
        if at == step:
            self.wait()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        try:
            yield
        except Killed:
            return
    pytest.fail(f"step {step} was not saved")


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that live, as Linux says."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def leaves_no_child(program: str, *arguments: str) -> bool:
    """Kill a Python program with SIGKILL once it prints; whether its children end, within 10 s.

    They inherit its standard error, which is at an end when all that could write there have ended.
    """
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, start_new_session=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline(), parent.communicate()
        parent.kill()
        try:
            parent.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(parent.pid, signal.SIGKILL)
            return False
    return True
