"""A lesson: a claim of the textbook, what is measured for it, and what follows from the numbers."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from experiments import compose, train
from experiments.commands.dispatch import as_plain
from experiments.core.config import build
from experiments.core.rng import root_key
from experiments.errors import EXIT_CODES, Exit
from experiments.lessons.page import page_of, title_of
from experiments.machine import write_whole
from experiments.training.evaluation import Data
from experiments.training.setup import Setup
from experiments.types import PositiveInt
from experiments.viz.pages.statistics import Values, interval_of_difference, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.cli.python import Run

Verdict = Literal["holds", "does not hold", "undecided"]

# what a lesson does not look at costs its trainings nothing
LEAN = ("logger=none", "trainer.figures=false", "overwrite=true")


@dataclass(frozen=True)
class Compared:
    """Two samples and the difference of their means; what is not finite is None, as JSON has it.

    Args:
      larger: what each run gave, or one exact number.
      smaller: the same of the others.
      difference: mean of the larger less that of the smaller.
      low: end of its 95 % interval, None where runs are too few for one.
      high: the other end.
    """

    larger: list[float | None]
    smaller: list[float | None]
    difference: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Finding:
    """A claim and what the numbers say of it.

    Args:
      claim: a sentence that can turn out wrong.
      verdict: what the numbers say.
      numbers: those that it follows from, with their spread, as text.
      compared: the same as numbers, where two samples were compared.
    """

    claim: str
    verdict: Verdict
    numbers: str
    compared: Compared | None = None


@dataclass
class Lab:
    """Where a lesson trains, draws and concludes.

    Args:
      directory: the run folder of the lesson.
    """

    directory: Path
    figures: dict[str, str] = field(default_factory=dict)  # captions by name
    tables: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def train(self, name: str, settings: Sequence[Sequence[str]]) -> list[Run]:
        """Train a run for each list of overrides, side by side where they differ in numbers alone.

        Args:
          name: of the folder of these runs.
          settings: the overrides of each run.

        Raises:
          Exit: it was interrupted.
        """
        began = time.perf_counter()
        configs = self._composed(settings)
        with _quietly(self.directory / "training.log"):
            runs = train(configs, self.directory / name)
        if any(run.summary.get("status") == "interrupted" for run in runs):
            raise Exit(EXIT_CODES["interrupted"])
        print(f"  {name}: {len(runs)} trainings in {time.perf_counter() - began:.0f} s")
        return runs

    def _composed(self, settings: Sequence[Sequence[str]]) -> list[DictConfig]:
        """Compose a config for each list of overrides.

        Composing by Hydra is slow: configs with the same choices are copies of one, with values.
        """
        parser, found = OverridesParser.create(), []
        of_choices: dict[tuple[str, ...], DictConfig] = {}
        for overrides in settings:
            values = {o: parser.parse_override(o) for o in overrides if _is_value(o)}
            choices = tuple(o for o in overrides if o not in values)
            if choices not in of_choices:
                of_choices[choices] = compose(*LEAN, *choices)
            config = copy.deepcopy(of_choices[choices])
            for override in values.values():
                OmegaConf.update(config, override.key_or_group, override.value())
            found.append(config)
        return found

    def figure(self, name: str, figure: Figure, caption: str) -> None:
        """Save a figure; the caption says what is to be seen."""
        from experiments.viz.drawing import save

        (self.directory / "figures").mkdir(exist_ok=True)
        save(figure, self.directory / "figures" / f"{name}.png")
        self.figures[name] = caption

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table to the lesson's page."""
        lines = [columns, ["---"] * len(columns), *rows]
        body = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
        self.tables.append(f"**{title}**\n\n{body}")

    def conclude(
        self, claim: str, holds: bool | None, numbers: str, compared: Compared | None = None
    ) -> None:
        """Say what the numbers say of a claim; `holds` is None where they do not decide it."""
        words: dict[bool | None, Verdict] = {
            True: "holds",
            False: "does not hold",
            None: "undecided",
        }
        self.findings.append(Finding(claim, words[holds], numbers, compared))

    def compare(
        self,
        claim: str,
        larger: Values,
        smaller: Values,
        *,
        paired: bool = False,
        margin: float = 0.0,
    ) -> None:
        """Conclude whether the mean of one sample is above that of another, less the margin.

        It holds if the whole 95 % interval of the difference is above −margin, does not hold if all
        of it is at or below, and is undecided otherwise: a single run against another decides
        nothing. A number in the place of a sample is exact.

        Args:
          paired: the samples are of the same seeds in order, so that their differences are judged.
          margin: by how much the larger may fall short, where the claim is that it is not worse.
        """
        low, high = interval_of_difference(larger, smaller, paired=paired)
        bounded = math.isfinite(high - low)
        interval = f"difference {low:.3g} to {high:.3g}" if bounded else "too few runs to tell"
        numbers = f"{spread(larger)} against {spread(smaller)}; {interval}"
        samples = [np.atleast_1d(np.asarray(values, float)) for values in (larger, smaller)]
        numeric = _finite([samples[0].mean() - samples[1].mean(), low, high])
        compared = Compared(_finite(samples[0]), _finite(samples[1]), *numeric)
        holds = True if low > -margin else False if high <= -margin else None
        self.conclude(claim, holds, numbers, compared)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """The arguments and methods that all lessons share.

    Args:
      seeds: runs of each setting where noise matters.
    """

    seeds: PositiveInt = 1

    def run(self, lab: Lab) -> None:
        """Train, draw and conclude."""
        raise NotImplementedError

    def __call__(self, directory: Path, command: str) -> list[Finding]:
        """Run the lesson in its folder, which then holds `lesson.md` and `lesson.json`."""
        began = time.perf_counter()
        lab = Lab(directory)
        self.run(lab)
        seconds = time.perf_counter() - began
        page = page_of(self, lab, command, seconds)
        write_whole(directory / "lesson.md", page.encode())
        record = {
            "title": title_of(self),
            "verdict": overall([finding.verdict for finding in lab.findings]),
            "findings": [dataclasses.asdict(finding) for finding in lab.findings],
            "figures": lab.figures,
            "seconds": round(seconds, 1),
        }
        write_whole(directory / "lesson.json", json.dumps(record, indent=2).encode())
        return lab.findings


@contextlib.contextmanager
def _quietly(path: Path) -> Iterator[None]:
    """Write what is printed to a file, and log warnings alone."""
    logging.disable(logging.INFO)
    try:
        with path.open("a") as file, contextlib.redirect_stdout(file):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _finite(values: Iterable[float]) -> list[float | None]:
    """Return numbers, None for what JSON has no number for."""
    return [float(value) if math.isfinite(value) else None for value in values]


def _is_value(override: str) -> bool:
    """Return whether an override sets a value, not the choice of a group."""
    key = override.partition("=")[0]
    return key == "seed" or ("." in key and key[0] not in "+~" and "@" not in key)


def over(seeds: int, *overrides: str) -> list[list[str]]:
    """Return the overrides of runs that differ in their seed."""
    return [[*overrides, f"seed={seed}"] for seed in range(seeds)]


def final(runs: Sequence[Run], metric: str) -> np.ndarray:
    """Return the last value of a metric of each run, NaN where it has none."""
    histories = [run.metrics for run in runs]
    found = [h[metric].dropna().tolist() if metric in h else [] for h in histories]
    return np.array([values[-1] if values else np.nan for values in found])


def by_setting(
    settings: Mapping[str, Sequence[str]], seeds: int
) -> tuple[list[list[str]], list[str]]:
    """Return the overrides of `seeds` runs of each setting, and the name of each run's setting."""
    runs = [(name, run) for name, given in settings.items() for run in over(seeds, *given)]
    return [run for _, run in runs], [name for name, _ in runs]


def inputs_of(run: Run, split: Literal["train", "validation", "test"], count: int) -> np.ndarray:
    """Return the first inputs of a split of data in memory, as they are stored."""
    arrays = getattr(run.splits, split).arrays
    return arrays["image" if "image" in arrays else "sequence"][:count]


def setup_of(config: DictConfig) -> Setup:
    """Return what a training of a config would begin with: its experiment and its data."""
    plain = as_plain(config, Path("untrained"))
    return Setup(plain, Data(build(plain["data"]).load()))


def untrained(config: DictConfig) -> Any:
    """Return the model of a config with the weights that its training begins with.

    It is in training mode.
    """
    experiment = setup_of(config).experiment
    weights = experiment.init_weights({}, root_key(config.seed))
    return experiment.trained_model({}, *weights, train=True)


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict of a lesson: that of its weakest claim."""
    if "does not hold" in verdicts:
        return "does not hold"
    return "undecided" if "undecided" in verdicts or not verdicts else "holds"
