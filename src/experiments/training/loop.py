"""Training: the one place with side effects, in the order in which they happen."""

import importlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from experiments.tracking.jsonl import SUMMARY
from experiments.tracking.tracker import RunInfo, Trackers
from experiments.training.compiled import (
    compile_evaluation,
    compile_programs,
    initial_state,
    ready_programs,
)
from experiments.training.distributed import is_first
from experiments.training.pretrained import pretrained_weights
from experiments.training.run import Run
from experiments.training.session import Session
from experiments.training.signals import StopRequest
from experiments.training.stored import saved_step

log = logging.getLogger(__name__)


def fit(
    session: Session,
    directory: Path,
    trackers: Trackers,
    stop: StopRequest,
    *,
    resume: bool = False,
    test: bool = True,
) -> dict[str, Any]:
    """Trains, validates every epoch, tests the best weights once; returns the summary.

    With `resume` it goes on from the newest checkpoint in `directory`; without `test` it leaves the
    test split alone.
    """
    experiment, trainer = session.experiment, session.trainer
    if resume and (summary := finished_before(directory, experiment.total_steps, test)):
        log.info("this run has finished; trainer.epochs= above %d goes on", trainer.epochs)
        trackers.finish(summary, summary["status"])
        return summary
    shapes = experiment.abstract_state(session.hparams)
    found = None if resume else pretrained_weights(session, shapes)
    trackers.status("compiling")
    ready = ready_programs(session)
    run = Run(session, trackers, stop, shapes, directory)
    ended = resume and saved_step(directory) >= experiment.total_steps
    with ThreadPoolExecutor() as pool, ExitStack() as at_the_end:
        compiled = None if ended else compile_programs(session, shapes, ready, pool)
        # from here on XLA works, and this thread while it does
        if compiled is not None:
            at_the_end.callback(compiled.begun)
        if trainer.checkpoints:
            pool.submit(importlib.import_module, "orbax.checkpoint")
        if ended:
            evaluation = pool.submit(compile_evaluation, session, shapes, ready)
        if resume:
            run.restore()
        else:
            initial = pool.submit(initial_state, session, found, ready, pool)
        trackers.start(
            RunInfo(
                directory=directory,
                name=session.config["name"],
                config=dict(session.config),
                total_steps=experiment.total_steps,
                steps_per_epoch=experiment.steps_per_epoch,
                batch_size=session.batch_size,
                parameters=run.parameters,
                start_step=run.step if resume else None,
            )
        )
        if not resume:
            run.begin(initial.result())
        if compiled is None and run.step < experiment.total_steps:  # the checkpoint was damaged
            compiled = compile_programs(session, shapes, ready, pool)
            at_the_end.callback(compiled.begun)
        run.compiled = compiled or evaluation.result()
        if compiled is not None:
            compiled.wait()
        status = run.train()
        if status == "interrupted":
            status = stop.status
    testing = test and status in ("finished", "stopped_early")
    if testing and trainer.figures and is_first():
        run.album.prepare()
    if trainer.checkpoints and status != "diverged":
        run.save(last=True)
    summary = run.summary(status)
    if testing:
        trackers.status("testing")
        tested, predictions = run.test()
        summary |= tested
        trackers.log(run.step, {"epoch": run.epochs_done, **tested})
        if trainer.figures and is_first():
            measured = run.album.end(run.step, run.best_weights, predictions)
            summary |= measured
            if measured:
                trackers.log(run.step, measured)
    if run.checkpoints is not None:
        run.checkpoints.close()
        trackers.model(run.checkpoints.path)
    trackers.finish(summary, status)
    return summary


def finished_before(directory: Path, total_steps: int, test: bool) -> dict[str, Any] | None:
    """The summary of the run in `directory` if there is nothing left to do."""
    path = directory / SUMMARY
    summary = json.loads(path.read_text()) if path.exists() else {}
    done = summary.get("status") == "finished" and summary["step"] >= total_steps
    done = done and (not test or any(name.startswith("test/") for name in summary))
    return summary if done else None
