"""Compiling everything that a run needs, at once."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import jax
import numpy as np

from experiments.experiment import State
from experiments.training.feed import ResidentFeed, StreamedFeed
from experiments.training.kept import static_key
from experiments.training.program import UNTRACEABLE, Programs, traceable
from experiments.training.ready import ReadyCalls, ReadyPrograms, compiling
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
    """The programs of a run, the training data that they read, and their traced inputs.

    A run with nothing left to train has no program for it.
    """

    train: Callable | None
    feed: ResidentFeed | StreamedFeed
    hparams: dict[str, np.float32]
    evaluating: Future[Callable]

    @property
    def evaluate(self) -> Callable:
        """The evaluation program; it is compiled while the first steps run."""
        return self.evaluating.result()


def initial_state(
    session: Session, found: Mapping | None, ready: ReadyPrograms, pool: Executor
) -> State:
    """The state at step 0, in which `found` weights take the place of new ones."""
    calls = ReadyCalls(ready, "init")
    state = session.experiment.init(session.hparams, session.key, found, calls)
    pool.submit(calls.keep)
    return state


def compile_programs(
    session: Session, state: State, ready: ReadyPrograms, pool: Executor
) -> Compiled:
    """Compiles the training program for a state of these shapes, and leaves evaluation to `pool`.

    Every hyperparameter is a traced input unless the program turns out to need its value.
    """
    feed = session.feed()
    made = session.kept.get(("programs", session.static))
    if made is None:
        made = _compile(session, state, feed, ready, pool)
        session.kept.put(("traced", session.untried), made.traced)
        static = static_key(session.config, made.traced)
        session.kept.put(("programs", static), made)
        session.kept.put(("experiment", static), session.experiment)
    hparams = {name: session.hparams[name] for name in made.traced}
    return Compiled(made.train, feed, hparams, made.evaluating)


def compile_evaluation(session: Session, state: State, ready: ReadyPrograms) -> Compiled:
    """What a run needs that has nothing left to train."""
    made = session.kept.get(("programs", session.static))
    hparams: dict = session.hparams
    evaluating: Future[Callable] = made.evaluating if made else Future()
    if made is None:
        try:
            evaluating.set_result(_evaluation(session, state, ready, hparams))
        except UNTRACEABLE:
            hparams = {}
            evaluating.set_result(_evaluation(session, state, ready, hparams))
    return Compiled(None, session.feed(), hparams, evaluating)


def _compile(
    session: Session,
    state: State,
    feed: ResidentFeed | StreamedFeed,
    ready: ReadyPrograms,
    pool: Executor,
) -> Executables:
    """Programs that an earlier run has left, or new ones, which are left to later runs."""
    kept, traced = ready.get("train"), tuple(session.hparams)
    if not kept:
        with compiling() as anew:
            kept["train"], traced = _compile_train(session, state, feed)
        if anew() and len(traced) == len(session.hparams):  # else it holds values as constants
            pool.submit(ready.put, "train", kept)
    hparams = {name: session.hparams[name] for name in traced}
    evaluating = pool.submit(_evaluation, session, state, ready, hparams)
    return Executables(kept["train"], evaluating, traced)


def _evaluation(
    session: Session, state: State, ready: ReadyPrograms, hparams: dict[str, np.float32]
) -> Callable:
    """The evaluation program that an earlier run has left, or a new one."""
    kept = ready.get("evaluate")
    if not kept:
        weights, batch = session.experiment.weights(state), session.evaluator("validation").shapes()
        with compiling() as anew:
            kept["evaluate"] = _programs(session).compile_eval(weights, batch, hparams)
        if anew() and len(hparams) == len(session.hparams):
            ready.put("evaluate", kept)  # here: the pool may be closing, as a run can end first
    return kept["evaluate"]


def _programs(session: Session) -> Programs:
    return Programs(
        session.experiment,
        session.mesh,
        batch_size=session.batch_size,
        max_steps=session.trainer.max_steps_per_dispatch,
    )


def _compile_train(
    session: Session, state: State, feed: ResidentFeed | StreamedFeed
) -> tuple[jax.stages.Compiled, tuple[str, ...]]:
    """The training program, and the names of its traced hyperparameters."""
    experiment, key, hparams = session.experiment, session.key, session.hparams
    programs = _programs(session)
    one_batch = isinstance(feed, StreamedFeed)
    try:
        train = programs.compile_train(state, feed.arrays, hparams, key, one_batch=one_batch)
    except UNTRACEABLE:
        hparams = traceable(experiment, hparams, feed.arrays, session.batch_size)
        for name in sorted(set(session.hparams) - set(hparams)):
            log.debug("%s is a constant of the program: it cannot be traced", name)
        train = programs.compile_train(state, feed.arrays, hparams, key, one_batch=one_batch)
    return train, tuple(hparams)


def ready_programs(session: Session) -> ReadyPrograms:
    """The programs that earlier runs have left for this configuration and data of these shapes."""
    experiment, feed = session.experiment, session.feed()
    shapes = [
        {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
        for arrays in (feed.arrays, session.evaluator("validation").shapes())
    ]
    made_from = (
        *(session.static, type(feed).__name__, shapes, session.batch_size),
        *(experiment.spec, experiment.pipeline),  # which can hold statistics of the data
        *(experiment.steps_per_epoch, experiment.total_steps),
    )
    return ReadyPrograms(session.config, made_from, list(session.mesh.devices.flat))
