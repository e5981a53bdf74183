"""Training: the one place with side effects, in the order in which they happen.

Every training is one of N >= 1 trials of a static configuration; a run by itself is N = 1.
"""

import itertools
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.core.params import count_parameters
from experiments.machine import collect_garbage_as_usual
from experiments.training.devices.memory import explained
from experiments.training.distributed import Decisions, is_first
from experiments.training.evaluation import Split
from experiments.training.figures import figures_of_trials
from experiments.training.groups import groups
from experiments.training.metrics import Line, Metrics, prefixed
from experiments.training.restored import pretrained_weights
from experiments.training.run_folder import CHECKPOINTS
from experiments.training.runtime import Profile
from experiments.training.saving.checkpoints import Progress, Saved
from experiments.training.saving.trials import SharedCheckpoints
from experiments.training.stack import Stack
from experiments.training.trial import TESTED, Trial

log = logging.getLogger(__name__)


def fit(
    trials: Sequence[Trial],
    folder: Path,
    *,
    resume: bool = False,
    test: bool = True,
    train: bool = True,
    width: int | None = None,
    most: int | None = None,
    shown: Callable[[Sequence[Trial], int], None] = lambda trials, step: None,
) -> list[dict[str, Any]]:
    """Train, validate period by period, test the best weights once; return summaries in order.

    Trials of one static configuration that are at the same step are trained side by side. What is
    written of each is what would be written if it had been trained by itself.

    Args:
      folder: of what belongs to several trials together, such as their checkpoints.
      resume: go on from what was saved in the folders of the trials.
      test: evaluate on the test split in the end; else it is left alone.
      train: train what is left to train; else only test what was saved.
      width: trials computed as one batch (None: the fastest, by timing).
      most: most trials side by side (None: no limit).
      shown: called with the trials and their step whenever that has changed.
    """
    for number, (members, saved) in enumerate(groups(trials, most, resume=resume, test=test)):
        if number and all(trial.stop.name is not None for trial in members):
            break  # asked to stop before these began
        where = folder / uuid.uuid4().hex[:8]
        with explained(members[0].setup, len(members)):
            Training(members, where, test=test, train=train, shown=shown).run(saved, width)
    return [trial.summary for trial in trials]


class Training:
    """Trials of one static configuration under way together.

    Trials that end leave between two periods; the others go on as if they had always been alone.
    The arguments are those of `fit`; the trials are at one step.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        folder: Path,
        *,
        test: bool,
        train: bool,
        shown: Callable[[Sequence[Trial], int], None],
    ):
        self.trials, self.test, self.train, self.shown = list(trials), test, train, shown
        setup = self.trials[0].setup
        self.setup, self.trainer, self.periods = setup, setup.trainer, setup.periods
        self.metrics = Metrics(self.periods, setup.experiment.steps_per_epoch)
        save_every = self.trainer.checkpoint_every if self.trainer.checkpoints else None
        most_steps = self.trainer.max_steps_per_dispatch
        self.decisions = Decisions(self.trainer.max_time, save_every, most_steps)
        keep_every = self.trainer.keep_every and self.trainer.keep_every * self.periods.length
        self.checkpoints = SharedCheckpoints(folder, keep_every)
        where = folder if len(self.trials) > 1 else self.trials[0].directory
        self.profile = Profile(where, self.trainer.profile_steps if is_first() else 0)
        self.figures = figures_of_trials(self.trials, test=test)
        self.to_log: list[tuple[Trial, int, Line]] = []  # ends of a period

    def run(self, saved: Sequence[Saved] | None, width: int | None) -> None:
        """Train all steps that are left, from `saved` on, or from step 0 if that is None."""
        self._begin(saved, width)
        if self.train:
            self._train()
        self.profile.after(self.metrics.step, ended=True)
        if self.trials:
            ended = "finished" if self.metrics.step >= self.periods.total else "stopped_early"
            self._leave(["diverged" if t.diverged_at is not None else ended for t in self.trials])

    def _begin(self, saved: Sequence[Saved] | None, width: int | None) -> None:
        """Start from step 0 or from what was saved; programs are compiled meanwhile."""
        collect_garbage_as_usual()
        for trial in self.trials:
            trial.among_others = len(self.trials) > 1
            trial.trackers.status("compiling")
        if saved is not None:
            self._restore(saved)
        training = self.train and self.metrics.step < self.periods.total
        self.stack = Stack(self.trials, width, training=training)
        pretrained = pretrained_weights(self.setup) if saved is None else None  # or refused
        for trial in self.trials:
            trial.start(count_parameters(self.setup.shapes.params), self.metrics.step)
        if saved is None:
            self.stack.begin(pretrained)
        else:
            self.stack.restore(saved)
        if training:
            self.stack.wait()

    def _restore(self, saved: Sequence[Saved]) -> None:
        self.metrics.restore([one.progress["recorder"] for one in saved])
        for trial, one in zip(self.trials, saved, strict=True):
            trial.restore(one.progress)
            trial.diverged_at = trial.end_of(one.state.diverged_at)

    def _train(self) -> None:
        """Train period by period while there are trials that go on."""
        self.decisions.start()
        self.stack.diagnose(self.metrics.step)
        while self.trials and (before := self.metrics.step) < self.periods.total:
            self.decisions.look(self.trials)
            decided, end = self.decisions, self.periods.end(before)
            each = zip(self.trials, decided.asked, strict=True)
            if self._leave([t.reason_to_end(before, decided, asked) for t, asked in each]):
                continue
            self._period(end)
            interrupted = decided.signal is not None and self.metrics.step < end
            if self._all_diverged() or self.metrics.step == before or interrupted:
                continue  # to leave, for the reason that there is
            self._validate()
            self.stack.diagnose(self.metrics.step)
            self._draw()
            if self.decisions.save_due or (self.trainer.checkpoints and self._stays()):
                self._save()

    def _period(self, end: int) -> None:
        """Train until a period's end and log its lines; the last ones await the validation.

        The metrics of a dispatch are fetched while the next one runs: the devices never wait for
        the log. Before a checkpoint all of them are fetched, so that it holds one moment.
        """
        self.end_lines: list[Line] = [{"epoch": self.metrics.epoch} for _ in self.trials]
        self.clock = time.perf_counter()
        while self.metrics.step < end and not self._stopping():
            waiting: tuple[dict[str, jax.Array], int] | None = None
            for dispatch in itertools.chain(self._dispatches(end), [None]):
                self._log_lines()  # of the period before, now that the devices have work
                if waiting is not None:
                    self._collect(*waiting, end)
                waiting = dispatch
            if self.decisions.save_due and self.metrics.step < end:
                self._save()
                self.clock = time.perf_counter()

    def _dispatches(self, end: int) -> Iterator[tuple[dict[str, jax.Array], int]]:
        """Hand steps of a period to the devices; yield each dispatch's log and length."""
        for window in self.stack.feed.windows(self.metrics.step, end):
            first = window.first
            while first < window.end:
                if self._stopping():
                    return
                count = min(self.decisions.steps, window.end - first)
                self.profile.before(self.metrics.step)
                yield self.stack.step(window, first, count), count
                first += count
                self.decisions.look(self.trials)
                if self.decisions.save_due:  # after a dispatch, so that there is always progress
                    return

    def _collect(self, steps: dict[str, jax.Array], count: int, end: int) -> None:
        """Log the lines that a dispatch, once it is done, completes, but for those of the end."""
        if self._all_diverged():  # the steps after that changed nothing
            return
        host = jax.device_get(steps)
        self.stack.compiled.compile_evaluation()
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        host = {name: values[: len(self.trials)] for name, values in host.items()}
        diverged = host.pop("diverged_at")
        ends = [t.end_of(at) for t, at in zip(self.trials, diverged, strict=True)]
        if all(e or t.diverged_at for e, t in zip(ends, self.trials, strict=True)):
            count = max(e for e in ends if e) - self.metrics.step  # none goes on after these
        self.decisions.took(seconds, count)
        logged, rate = False, count * self.setup.batch_size / max(seconds, 1e-9)
        for step, diverged_row in self.metrics.add(host, count, ends):
            logged = True
            for row, line in enumerate(self.metrics.lines()):
                if self.trials[row].diverged_at is None and diverged_row in (None, row):
                    line["examples_per_second"] = rate
                    if diverged_row is None and step == end:
                        self.end_lines[row] = line
                    else:
                        self.trials[row].log(step, line)
            if diverged_row is not None:
                self._diverge(diverged_row, step)
        if not logged:  # slow steps: a line may take minutes, so the display shows a part of it
            for trial, line in zip(self.trials, self.metrics.lines(), strict=True):
                trial.trackers.progress(self.metrics.step, line | {"examples_per_second": rate})
        for trial in self.trials:
            trial.training_seconds += seconds
        self.profile.after(self.metrics.step)
        self.shown(self.trials, self.metrics.step)

    def _diverge(self, row: int, step: int) -> None:
        """Note that a trial diverged in this step, and where its NaN comes from if asked for."""
        trial = self.trials[row]
        trial.diverge(step)
        if self.trainer.debug_nans:
            trial.first_nan = self.stack.first_nan(row, step - 1) or "no operation alone"
            trial.warn(f"it comes from {trial.first_nan}")

    def _validate(self) -> None:
        """Validate all trials, which completes their lines; take note of the best weights."""
        weights = self.stack.weights
        measured, means = self.stack.measure("validation", weights), self.metrics.end_period()
        better = []
        for row, trial in enumerate(self.trials):
            line = self.end_lines[row] | means[row] | prefixed("val", measured[row].line)
            better.append(trial.diverged_at is None and trial.take(self.metrics.step, line))
            if trial.diverged_at is None:
                self.to_log.append((trial, self.metrics.step, line))
        self.stack.keep_better(better)
        self.stack.set_numbers()
        if any(trial.trackers.may_stop for trial in self.trials):
            self._log_lines()
        self.stack.tell_callbacks(self.metrics.step)

    def _log_lines(self, *, drawn: bool = False) -> None:
        """Log the lines of a period; with `drawn`, wait for its figures and hand them over too."""
        for trial, step, line in self.to_log:
            trial.log(step, line)
        self.to_log = []
        for figures in self.figures.values() if drawn else ():
            figures.flush(self.metrics.step)

    def _draw(self) -> None:
        """Begin to draw what there is to see after a period."""
        number = self.periods.number(self.metrics.step)
        for row, trial in enumerate(self.trials):
            if (figures := self.figures.get(trial)) and figures.due(number):
                weights = self.stack.weights_of(row, self.stack.weights)
                figures.after_epoch(self.metrics.step, weights)

    def _all_diverged(self) -> bool:
        return all(trial.diverged_at is not None for trial in self.trials)

    def _stopping(self) -> bool:
        return self.decisions.signal is not None or self.decisions.late or self._all_diverged()

    # ------------------------------------------------------------------ saving and leaving

    def _stays(self) -> bool:
        """Return whether a checkpoint of what was just evaluated is to stay for good."""
        step, keep_every = self.metrics.step, self.checkpoints.keep_every
        regular = keep_every is not None and step % keep_every == 0
        return regular or any(step == one["step"] for t in self.trials for one in t.best.best_k)

    def _save(self, *, last: bool = False) -> None:
        """Save all trials in the background; the last time no step will follow."""
        self._log_lines(drawn=True)  # no training after this one would draw it again
        self.checkpoints.save(self.metrics.step, self.stack.saved, *self._records(), last=last)
        self.decisions.saved()

    def _records(self, rows: Sequence[int] | None = None) -> tuple[list[Path], list[Progress]]:
        """Return the folders of trials, all or some, and what the host knows of them."""
        rows = range(len(self.trials)) if rows is None else rows
        trials = [self.trials[row] for row in rows]
        progress = [t.progress(self.metrics.progress(r)) for r, t in zip(rows, trials, strict=True)]
        return [trial.directory for trial in trials], progress

    def _leave(self, statuses: Sequence[str | None]) -> bool:
        """End the trials that have a status; return whether there were any."""
        leaving = {row: status for row, status in enumerate(statuses) if status is not None}
        staying = [row for row, status in enumerate(statuses) if status is None]
        if not leaving:
            return False
        self._log_lines(drawn=True)
        summaries = {r: self.trials[r].summarize(self.metrics.step, leaving[r]) for r in leaving}
        if self.trainer.checkpoints:
            self._save_last([row for row in leaving if leaving[row] != "diverged"], staying)
        tested = self._evaluate_best([row for row in leaving if leaving[row] in TESTED])
        self.checkpoints.close()
        for row, status in leaving.items():
            trial = self.trials[row]
            trial.summary = summaries[row] | tested.get(row, {})
            if (own := trial.directory / CHECKPOINTS).is_dir() and trial.trackers.takes_model:
                trial.trackers.model(own)
            trial.trackers.finish(trial.summary, status)
        self.trials = [self.trials[row] for row in staying]
        if staying:
            self.metrics.keep(staying)
            self.stack.go_on_with(staying)
        return True

    def _save_last(self, rows: list[int], staying: list[int]) -> None:
        """Save trials that end: in their own folders where others go on or a tracker takes them."""
        apart = [row for row in rows if staying or self.trials[row].trackers.takes_model]
        together, step = [] if staying else rows, self.metrics.step
        if len(together) == len(self.trials):
            self._save(last=True)
        elif together:
            self.checkpoints.close()
            self.checkpoints.save(step, self.stack.rows(together), *self._records(together))
        if apart and len(self.trials) > 1:
            self.checkpoints.save_apart(step, self.stack.saved, apart, *self._records())

    def _evaluate_best(self, rows: list[int]) -> dict[int, dict[str, Any]]:
        """Test the best weights of trials that end, log that, and draw their figures.

        Where the test split is left alone, figures show the validation split.
        """
        split: Split = "test" if self.test else "validation"
        drawn = [row for row in rows if self.trials[row] in self.figures]
        if not (rows if self.test else drawn):
            return {}
        for row in rows:
            self.trials[row].trackers.status("testing")
        evaluated, step = self.stack.evaluate_best(split, drawn), self.metrics.step
        found: dict[int, dict[str, Any]] = {row: {} for row in rows}
        for row in rows:
            trial, (measured, predictions) = self.trials[row], evaluated[row]
            if self.test:
                line = prefixed("test", measured.line)
                trial.trackers.log(step, {"epoch": self.metrics.epoch, **line})
                found[row] = line | measured.classes(self.setup.splits.class_names)
            if row in drawn and predictions is not None:
                weights = self.stack.weights_of(row, self.stack.best)
                if line := self.figures[trial].finish(step, weights, predictions):
                    trial.trackers.log(step, line)
                    found[row] |= line
        return found
