"""Compiling everything that a run needs, at once."""

import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import jax
import numpy as np

from experiments.core.experiment import State
from experiments.training.compiler import compiler_options
from experiments.training.feed import ResidentFeed, StreamedFeed
from experiments.training.kept import static_key
from experiments.training.memory import give_back
from experiments.training.program import UNTRACEABLE, Programs, traceable
from experiments.training.ready import ReadyCalls, ReadyPrograms
from experiments.training.session import Session
from experiments.viz.flops import work

Program = jax.stages.Compiled

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Executables:
    """The programs of a static configuration, as they get ready; `traced` names their inputs.

    That for evaluation is not compiled before `begun` is set: the first steps of training have the
    processors to themselves.
    """

    train: Future[Program]
    evaluate: Future[Program]
    traced: tuple[str, ...]
    begun: threading.Event


@dataclass(frozen=True)
class Compiled:
    """The programs of a run, the training data that they read, and their traced inputs."""

    made: Executables
    feed: ResidentFeed | StreamedFeed
    hparams: dict[str, np.float32]

    @property
    def train(self) -> Program:
        """The training program; waits for it."""
        return self.made.train.result()

    def wait(self) -> None:
        """Until training can start."""
        self.made.train.result()
        give_back()  # what compiling has left, before steps take their memory

    @property
    def evaluate(self) -> Program:
        """The evaluation program; waits for it."""
        self.begun()
        return self.made.evaluate.result()

    def begun(self) -> None:
        """Says that there have been steps, or that there will be none."""
        self.made.begun.set()


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
    """The programs for a state of these shapes; `pool` goes on when training has been traced.

    Every hyperparameter is a traced input unless the program turns out to need its value.
    """
    made = session.kept.get(("programs", session.static))
    if made is None:
        made = _compile(session, state, ready, pool)
        session.kept.put(("traced", session.untried), made.traced)
        static = static_key(session.config, made.traced)
        session.kept.put(("programs", static), made)
        session.kept.put(("experiment", static), session.experiment)
    return _for_run(session, made)


def compile_evaluation(session: Session, state: State, ready: ReadyPrograms) -> Compiled:
    """What a run needs that has nothing left to train."""
    made = session.kept.get(("programs", session.static))
    if made is None:
        ahead = session.kept.get(("evaluation", session.static))
        made = _evaluation_alone(session, state, ready) if ahead is None else ahead.result()
    return _for_run(session, made)


def compile_evaluation_ahead(session: Session, pool: Executor) -> None:
    """Has `pool` compile what `compile_evaluation` will be asked for by a run like this one."""

    def compile() -> Executables:
        state = session.experiment.abstract_state(session.hparams)
        return _evaluation_alone(session, state, ready_programs(session))

    session.kept.put(("evaluation", session.static), pool.submit(compile))


def _evaluation_alone(session: Session, state: State, ready: ReadyPrograms) -> Executables:
    evaluate: Future[Program] = Future()
    traced = tuple(session.hparams)
    try:
        evaluate.set_result(_evaluation(session, state, ready, traced))
    except UNTRACEABLE:
        traced = ()
        evaluate.set_result(_evaluation(session, state, ready, traced))
    if len(traced) == len(session.hparams):
        ready.put("evaluate", {"evaluate": evaluate.result()})
    return Executables(Future(), evaluate, traced, threading.Event())


def _for_run(session: Session, made: Executables) -> Compiled:
    hparams = {name: session.hparams[name] for name in made.traced}
    return Compiled(made, session.feed, hparams)


def _compile(session: Session, state: State, ready: ReadyPrograms, pool: Executor) -> Executables:
    """Programs that an earlier run has left, or new ones, which are left to later runs."""
    traced, begun = tuple(session.hparams), threading.Event()
    if ready.has("train"):
        train = pool.submit(_found, session, state, ready)
    else:
        program, traced = _trace_train(session, state)
        train = pool.submit(ready.compile, program.lower(), _options(session, program))

    def evaluation() -> Program:
        return _evaluation(session, state, ready, traced, after=(train.result, begun.wait))

    evaluate = pool.submit(evaluation)
    if len(traced) == len(session.hparams):  # else they hold values as constants
        pool.submit(_keep, ready, "train", train, begun)
        pool.submit(_keep, ready, "evaluate", evaluate, begun)
    return Executables(train, evaluate, traced, begun)


def _found(session: Session, state: State, ready: ReadyPrograms) -> Program:
    """The training program that an earlier run has left, or where that is damaged a new one."""
    found = ready.get("train")
    if not found:
        program, _ = _trace_train(session, state)
        found["train"] = ready.compile(program.lower(), _options(session, program))
        ready.put("train", found)
    return found["train"]


def _keep(
    ready: ReadyPrograms, name: str, program: Future[Program], begun: threading.Event
) -> None:
    begun.wait()
    ready.put(name, {name: program.result()})
    give_back()


def _evaluation(
    session: Session,
    state: State,
    ready: ReadyPrograms,
    traced: Sequence[str],
    after: Iterable[Callable] = (),
) -> Program:
    """The evaluation program that an earlier run has left, or a new one, compiled `after` these."""
    if ready.has("evaluate"):
        for wait in after:
            wait()
        if found := ready.get("evaluate"):
            return found["evaluate"]
    hparams = {name: session.hparams[name] for name in traced}
    weights, batch = session.experiment.weights(state), session.evaluator("validation").shapes()
    traced_program = _programs(session).trace_eval(weights, batch, hparams)
    lowered = traced_program.lower()
    for wait in after:
        wait()
    return ready.compile(lowered, _evaluation_options(session, traced_program))


def _programs(session: Session) -> Programs:
    return Programs(
        session.experiment,
        session.mesh,
        batch_size=session.batch_size,
        max_steps=session.trainer.max_steps_per_dispatch,
    )


def _options(session: Session, program: jax.stages.Traced) -> dict | None:
    """What XLA is told of a training program, which the tracer takes for one of a single step."""
    return compiler_options(session.experiment.total_steps * work(program.jaxpr.jaxpr))


def _evaluation_options(session: Session, program: jax.stages.Traced) -> dict | None:
    """What XLA is told of the evaluation program, which is called for a batch at a time."""
    splits, epochs = session.splits, session.trainer.epochs
    examples = epochs * len(splits.validation) + len(splits.test)
    batches = math.ceil(examples / session.eval_batch_size)
    return compiler_options(batches * work(program.jaxpr.jaxpr))


def _trace_train(session: Session, state: State) -> tuple[jax.stages.Traced, tuple[str, ...]]:
    """The traced training program, and the names of its traced hyperparameters."""
    experiment, feed, key, hparams = (
        session.experiment,
        session.feed,
        session.key,
        session.hparams,
    )
    programs = _programs(session)
    one_batch = isinstance(feed, StreamedFeed)
    try:
        traced = programs.trace_train(state, feed.arrays, hparams, key, one_batch=one_batch)
    except UNTRACEABLE:
        hparams = traceable(experiment, hparams, feed.arrays, session.batch_size)
        for name in sorted(set(session.hparams) - set(hparams)):
            log.debug("%s is a constant of the program: it cannot be traced", name)
        traced = programs.trace_train(state, feed.arrays, hparams, key, one_batch=one_batch)
    return traced, tuple(hparams)


def ready_programs(session: Session) -> ReadyPrograms:
    """The programs that earlier runs have left for this configuration and data of these shapes."""
    experiment, feed = session.experiment, session.feed
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
