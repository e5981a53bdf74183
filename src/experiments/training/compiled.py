"""Compiling everything that a run needs, at once."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from experiments.experiment import State
from experiments.training.feed import ResidentFeed, StreamedFeed
from experiments.training.program import UNTRACEABLE, Programs, traceable
from experiments.training.session import Session

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compiled:
    """The programs of a run, the training data that they read, and their traced inputs."""

    train: Callable
    evaluate: Callable
    feed: ResidentFeed | StreamedFeed
    hparams: dict[str, np.float32]
    state: State  # shapes


def compile_programs(session: Session) -> Compiled:
    """Compiles training and evaluation side by side.

    Every hyperparameter is a traced input unless the program turns out to need its value.
    """
    experiment, key, hparams = session.experiment, session.key, session.hparams
    feed = session.feed()
    programs = Programs(
        experiment,
        session.mesh,
        batch_size=session.batch_size,
        max_steps=session.trainer.max_steps_per_dispatch,
    )
    state = experiment.abstract_state(hparams)
    batch = session.evaluator("validation").shapes()
    with ThreadPoolExecutor() as pool:
        evaluate = pool.submit(programs.compile_eval, experiment.weights(state), batch, hparams)
        try:
            train = programs.compile_train(state, feed.arrays, hparams, key)
        except UNTRACEABLE:
            hparams = traceable(experiment, hparams, feed.arrays, session.batch_size)
            for name in sorted(set(session.hparams) - set(hparams)):
                log.debug("%s is a constant of the program: it cannot be traced", name)
            train = programs.compile_train(state, feed.arrays, hparams, key)
            evaluate = pool.submit(programs.compile_eval, experiment.weights(state), batch, hparams)
        return Compiled(train, evaluate.result(), feed, hparams, state)
