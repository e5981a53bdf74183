"""Training runs as populations, whatever mixture they are."""

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import jax

from experiments.core.experiment import Hparams
from experiments.data.dataset import Stream
from experiments.training import stored
from experiments.training.kept import Kept
from experiments.training.loop import finished_before
from experiments.training.population_lane import Member
from experiments.training.population_shared import Shared
from experiments.training.population_train import Population
from experiments.training.program import UNTRACEABLE, traceable
from experiments.training.session import Session, open_session
from experiments.viz.flops import cost

log = logging.getLogger(__name__)


def open_lane(config: Mapping[str, Any], kept: Kept) -> Session:
    """A session whose hyperparameters are those that can be traced; found out by trying."""
    session = open_session(config, kept)
    if kept.get(("cost", session.untried)) is None:
        traced, step = _traced(session)
        kept.put(("traced", session.untried), traced)
        kept.put(("cost", session.untried), cost(step))
        session = open_session(config, kept)
    return session


def compile_ahead(
    session: Session,
    lanes: int,
    pool: Executor,
    *,
    own_batches: bool,
    width: int | None = None,
    most: int | None = None,
) -> None:
    """Has `pool` compile for so many lanes like this one, to be trained by `fit_together`.

    That takes XLA a second and more, in which its caller can open the other lanes. Not of streamed
    data, whose readers are for one population.
    """
    if isinstance(session.splits.train, Stream):
        return
    lanes = min(lanes, most or lanes)
    shared = Shared(session, own_batches, lanes)
    shared.compile_ahead(pool, shared.rows(lanes), width)


def fit_together(
    members: Sequence[Member],
    folder: Path,
    *,
    width: int | None = None,
    most: int | None = None,
    test: bool = True,
    trained: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Trains runs side by side where they can; returns their summaries in order.

    Runs of one static configuration that are at the same step form a population, in chunks of at
    most `most`. Each is written as if it had run alone. `folder` takes the checkpoints of
    populations. Members with something saved in their folders go on from there. `trained` is called
    whenever a population has been trained, before it is saved.
    """
    summaries: dict[int, dict[str, Any]] = {}
    groups: dict[tuple[str, int], list[int]] = {}
    for index, member in enumerate(members):
        total = member.session.experiment.total_steps
        if done := finished_before(member.directory, total, test):
            member.trackers.finish(done, done["status"])
            summaries[index] = done
            continue
        key = (member.session.static, stored.saved_step(member.directory))
        groups.setdefault(key, []).append(index)
    for (_, step), indices in groups.items():
        size = most or len(indices)
        for start in range(0, len(indices), size):
            chunk = indices[start : start + size]
            chosen = [members[index] for index in chunk]
            where = folder / uuid.uuid4().hex[:8]
            population = Population(chosen, where, width, test=test, resume=step > 0)
            summaries |= dict(zip(chunk, population.train(trained), strict=True))
    return [summaries[index] for index in range(len(members))]


def _traced(session: Session) -> tuple[tuple[str, ...], Any]:
    """The names of the hyperparameters that the program can take as inputs; the step with them."""
    experiment, hparams = session.experiment, session.hparams
    arrays = session.feed_on(session.replicated).arrays
    batch = {
        name: jax.ShapeDtypeStruct((session.batch_size, *array.shape[1:]), array.dtype)
        for name, array in arrays.items()
    }

    def step(hparams: Hparams) -> Any:
        state = experiment.abstract_state(hparams)
        flag = jax.ShapeDtypeStruct((), bool)
        trace = jax.make_jaxpr(experiment.step)
        return trace(state, batch, hparams, session.key, flag).jaxpr

    try:
        return tuple(hparams), step(hparams)
    except UNTRACEABLE:
        found = traceable(experiment, hparams, arrays, session.batch_size)
        for name in sorted(set(hparams) - set(found)):
            log.debug("%s=%s sets trials apart: it cannot be traced", name, hparams[name])
        return tuple(found), step(found)
