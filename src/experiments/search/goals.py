"""What a search goes by: its metrics, their goals, and what ends trials early."""

import logging
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from experiments.core.config import mismatch
from experiments.errors import UserError, suggest
from experiments.types import Bound, PositiveInt

log = logging.getLogger(__name__)

Goal = Literal["minimize", "maximize"]

COSTS = ("parameters", "seconds")
"""What may be searched for beside metrics of the validation: what a trial costs."""

METRIC: dict[str, Any] = {
    "name": str,
    "goal": Literal["minimize", "maximize"],
    "target": float | None,
}
EARLY: dict[str, Any] = {
    "type": Literal["hyperband", "median"],
    "eta": Annotated[int, Bound("at least", 2)],
    "strict": Any,
    **dict.fromkeys(("min_epochs", "min_iter", "max_iter", "s"), PositiveInt),
}
"""The keys of `metric` and `early_terminate`, each with what it may be."""

VALIDATED = "the validation split decides, so it must be a name such as val/accuracy"


def read_goal(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics, goals and early ending of settings in the form that a plan has.

    Raises:
        UserError: one of them is wrong.
    """
    found: dict[str, Any] = {k: listed(settings[k]) for k in ("metric", "goal") if settings.get(k)}
    for name in (metrics := found.get("metric", [])):
        if name not in COSTS and not str(name).startswith("val/"):
            raise UserError(f"metric={name}: {VALIDATED}, {' or '.join(COSTS)}")
    if metrics and (set(metrics) <= set(COSTS) or len(set(metrics)) < len(metrics)):
        raise UserError(f"metric={','.join(metrics)}: name a metric once, and one of val/")
    if "seconds" in metrics and settings.get("side_by_side", 1) != 1:
        raise UserError("metric=seconds: trials side by side share their time; say side_by_side=1")
    for goal in found.get("goal", []):
        if complaint := mismatch(goal, Goal):
            raise UserError(f"goal={goal}: must be {complaint}")
    early = settings.get("early_terminate")
    if early and (early := {"type": "hyperband"} | early)["type"] in ("none", None):
        early = None
    if early and (complaint := mismatch(early["type"], EARLY["type"])):
        raise UserError(f"early_terminate={early['type']}: must be none, or {complaint}")
    if wrong := list(wrong_keys(EARLY, early or {}, "early_terminate.")):
        raise UserError("\n".join(wrong))
    return {**found, "early_terminate": early or None}


def usual_goal(metric: str, modes: Mapping[str, str]) -> str:
    """Return the goal that suits a metric; `modes` are `min` or `max` of metrics known better.

    Raises:
        UserError: nothing tells.
    """
    from experiments.objectives.metrics import LARGER_IS_BETTER, SMALLER_IS_BETTER, words

    if modes.get(metric) == "max" or (metric not in modes and words(metric) & LARGER_IS_BETTER):
        return "maximize"
    if metric in (*modes, *COSTS) or words(metric) & SMALLER_IS_BETTER:
        return "minimize"
    raise UserError(f"metric={metric}: say goal=minimize or goal=maximize")


def question_goal(metric: str, goal: str) -> None:
    """Warn where a search looks for the worst trial by the usual sense of its metric."""
    from experiments.objectives.metrics import LARGER_IS_BETTER, SMALLER_IS_BETTER, words

    for better, names in (("maximize", LARGER_IS_BETTER), ("minimize", SMALLER_IS_BETTER)):
        if words(metric) & names and goal != better:
            log.warning(
                "warning: goal: %s looks for the worst %s (W&B's default is minimize); "
                "say goal: %s",
                *(goal, metric, better),
            )


def wrong_keys(
    hints: Mapping[str, Any], given: Mapping[str, Any], group: str = ""
) -> Iterator[str]:
    """Yield a complaint for each key that there is not, and for each value that none may have."""
    for key, value in given.items():
        if key not in hints:
            yield f"{group}{key}: there is no such key{suggest(str(key), hints)}"
        elif complaint := mismatch(value, hints[key]):
            yield f"{group}{key}={value}: must be {complaint}"


def listed(value: Any) -> list:
    """Return a value as a list, if it is none."""
    return list(value) if isinstance(value, list | tuple) else [value]
