"""Compiling everything that a run needs, at once."""

import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np

from experiments.experiment import State
from experiments.training.feed import ResidentFeed, StreamedFeed
from experiments.training.kept import static_key
from experiments.training.program import UNTRACEABLE, Programs, traceable
from experiments.training.session import Session

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Executables:
    """The compiled programs of a static configuration; `traced` names their inputs."""

    train: Callable
    evaluating: Future[Callable]
    traced: tuple[str, ...]


@dataclass(frozen=True)
class Compiled:
    """The programs of a run, the training data that they read, and their traced inputs."""

    train: Callable
    feed: ResidentFeed | StreamedFeed
    hparams: dict[str, np.float32]
    evaluating: Future[Callable]

    @property
    def evaluate(self) -> Callable:
        """The evaluation program; it is compiled while the first steps run."""
        return self.evaluating.result()


def compile_programs(session: Session, state: State, pool: Executor) -> Compiled:
    """Compiles the training program for a state of these shapes, and leaves evaluation to `pool`.

    Every hyperparameter is a traced input unless the program turns out to need its value.
    """
    feed = session.feed()
    made = session.kept.get(("programs", session.static))
    if made is None:
        made = _compile(session, state, feed, pool)
        session.kept.put(("traced", session.untried), made.traced)
        static = static_key(session.config, made.traced)
        session.kept.put(("programs", static), made)
        session.kept.put(("experiment", static), session.experiment)
    hparams = {name: session.hparams[name] for name in made.traced}
    return Compiled(made.train, feed, hparams, made.evaluating)


def _compile(
    session: Session, state: State, feed: ResidentFeed | StreamedFeed, pool: Executor
) -> Executables:
    experiment, key, hparams = session.experiment, session.key, session.hparams
    programs = Programs(
        experiment,
        session.mesh,
        batch_size=session.batch_size,
        max_steps=session.trainer.max_steps_per_dispatch,
    )
    one_batch = isinstance(feed, StreamedFeed)
    try:
        train = programs.compile_train(state, feed.arrays, hparams, key, one_batch=one_batch)
    except UNTRACEABLE:
        hparams = traceable(experiment, hparams, feed.arrays, session.batch_size)
        for name in sorted(set(session.hparams) - set(hparams)):
            log.debug("%s is a constant of the program: it cannot be traced", name)
        train = programs.compile_train(state, feed.arrays, hparams, key, one_batch=one_batch)
    batch = session.evaluator("validation").shapes()
    weights = experiment.weights(state)
    evaluating = pool.submit(programs.compile_eval, weights, batch, hparams)
    return Executables(train, evaluating, tuple(hparams))
