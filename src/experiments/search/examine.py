"""Checks of what a search may draw, of its metric and its goal, before anything is trained."""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.core.config import MISSING, build, leaves, objective_of
from experiments.errors import UserError
from experiments.search.configs import assignments, check_trial
from experiments.search.goals import COSTS, question_goal, usual_goal
from experiments.search.space import Space, path_of
from experiments.training.options import check_sizes, surprises

if TYPE_CHECKING:
    from experiments.core.experiment import Experiment

log = logging.getLogger(__name__)

SIZES = (
    *("data.", "trainer.epochs", "trainer.steps", "schedule.warmup"),
    *("objective.warmup_epochs", "optim.accumulate", "discriminator_optim.accumulate"),
)
"""Beginnings of parameters that decide together how long a trial is, and how long it has to be."""

SHAPES = ("model.", "data.")
"""Beginnings of parameters that shapes of weights follow from."""

WEIGHTS = ("freeze", "optim.learning_rates", "discriminator_optim.learning_rates")
"""Beginnings of parameters that name weights."""


def examine(
    space: Space, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Check what a search may draw; return its settings, with metric and goal, and overrides.

    By these overrides a trial finds its best epoch. The third result is what may surprise. This
    imports what the configs name, and with that JAX, but computes nothing.

    Raises:
        UserError: a line for each thing that is wrong.
    """
    if wrong := check_values(space):
        raise UserError("\n".join(wrong))
    every = []
    for choices in space.contexts:
        whole = complete(space, choices)
        config = space.configs.plain(whole)
        every.append(config)
        check_trial(config)
        check_model(config)
        check_beside(
            space, whole, [n for n in space.existing(choices) if n.startswith(SIZES)], check_sizes
        )
    config = space.configs.plain(complete(space, space.contexts[0]))
    from experiments.objectives.metrics import monitored  # imports JAX

    trainer = config["trainer"]
    own = objective_of(config).monitor
    chosen, mode = monitored(own, trainer["monitor"], trainer["monitor_mode"])
    surprising = list(dict.fromkeys(itertools.chain(*map(surprises_of, every))))
    key = "metric=val/" if "metric" in settings else "trainer.monitor="
    metrics = settings.get("metric", [f"val/{chosen}"])
    validated = [name.removeprefix("val/") for name in metrics if name not in COSTS]
    wrong = [f"{key}{name}: {said}" for name in validated for said in check_metric(space, name)]
    if wrong:
        raise UserError("\n".join(wrong))
    modes = {f"val/{own[0]}": own[1], f"val/{chosen}": mode}
    goals = settings.get("goal") or [usual_goal(name, modes) for name in metrics]
    if len(goals) != len(metrics):
        said = f"goal={','.join(goals)}: there are {len(metrics)} metrics, {', '.join(metrics)}"
        raise UserError(f"{said}; say a goal for each, in their order")
    for metric, goal in zip(metrics, goals, strict=True):
        question_goal(metric, goal)
    settled = {**settings, "metric": metrics, "goal": goals}
    decides = validated[0], goals[metrics.index(f"val/{validated[0]}")][:3]  # on the best epoch
    if decides == (chosen, mode):
        return settled, [], surprising
    own = [f"trainer.monitor={decides[0]}", f"trainer.monitor_mode={decides[1]}"]
    return settled, own, surprising


def surprises_of(config: dict[str, Any]) -> list[str]:
    """Return what may surprise in a config; nothing where the workers alone can tell."""
    try:
        return list(surprises(experiment_of(config), training=True))
    except Exception:
        log.debug("a trial will show this", exc_info=True)
        return []


def check_metric(space: Space, metric: str) -> Iterator[str]:
    """Yield a complaint for each choice of a group whose trials have no such validation metric."""
    from experiments.core.metrics import complaint_about  # imports JAX

    for choices in space.contexts:
        try:
            config = space.configs.plain(complete(space, choices))
            complaint = complaint_about(experiment_of(config), metric)
        except Exception:  # of data that lie where the workers are, or of a device
            log.debug("a trial will show this", exc_info=True)
            continue
        if complaint is not None:
            of = " ".join(assignments(choices))
            yield f"{f'trials with {of}' if of else 'its trials'} have {complaint}"


def experiment_of(config: dict[str, Any]) -> "Experiment":
    """Return the experiment of a config; of its data the description alone is read."""
    from experiments.core.experiment import Experiment  # imports JAX

    data = build(config["data"])
    return Experiment(config, data.spec, data.pipeline, 1, 1)


def check_model(config: dict[str, Any]) -> None:
    """Check that the model can be built for the data, of which the description alone is read.

    It is not called: that depends on the device, which planning leaves to the workers.
    """
    try:
        experiment_of(config).abstract_state({})
    except UserError:
        raise
    except Exception:
        log.debug("a trial will show this", exc_info=True)


def check_values(space: Space) -> list[str]:
    """Return the complaints of a run about values that the search may draw, one per parameter.

    All values of a list and the ends of every range are compared with the config of each choice of
    each group. A value that is wrong beside some values of other parameters only is not refused.
    """
    found: dict[str, str] = {}
    for check, names, beside in (
        (check_trial, None, ()),
        (check_model, SHAPES, ()),
        (check_model, WEIGHTS, SHAPES),
        (check_sizes, SIZES, SIZES),
    ):
        for choices in space.contexts:
            whole, there = complete(space, choices), space.existing(choices)
            others = [name for name in there if beside and name.startswith(beside)]
            for name in there if names is None else (n for n in there if n.startswith(names)):
                parameter = space.parameters[name]
                for value in parameter.extremes:
                    if check is check_model and isinstance(value, float):
                        continue  # no shape follows from it
                    try:
                        check_beside(space, {**whole, path_of(name): value}, others, check)
                    except UserError as error:
                        own, q = str(error).startswith(name), parameter.q
                        problem = str(error) if own else f"{name}={value}: {error}"
                        rounded = f"; its range is rounded to multiples of {q:g}" if q else ""
                        found.setdefault(name, problem + rounded)
        if found:  # the other checks are of values that are right by themselves
            break
    return list(found.values())


def complete(space: Space, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return choices with a value for each key that has none but those that the search draws."""
    without = {key for key, value in leaves(space.configs.plain(choices)) if value == MISSING}
    drawn = {path_of(name): space.parameters[name] for name in space.existing(choices)}
    return {**choices, **{path: p.extremes[0] for path, p in drawn.items() if path in without}}


def check_beside(
    space: Space, values: dict[str, Any], others: Sequence[str], check: Callable[[dict], None]
) -> None:
    """Check the config with these values, and with any of the `others`.

    Raises:
        UserError: none of the values of the others, or of the ends of their ranges, goes with it.
    """
    free = {path_of(name): space.parameters[name] for name in others if path_of(name) not in values}
    for beside in itertools.product(*(parameter.extremes for parameter in free.values())):
        try:
            return check(space.configs.plain({**values, **dict(zip(free, beside, strict=True))}))
        except UserError as error:
            refused = error
    raise refused
