"""The outcome of a trial, from the summaries or errors of its runs."""

import logging
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.errors import UserError, masked
from experiments.machine import fault_of

log = logging.getLogger(__name__)

Summary = dict[str, Any]


class Outcome(NamedTuple):
    """The end of a trial: one of the study's states or `interrupted`, its value, attributes."""

    state: str
    value: float | None = None
    attributes: Mapping[str, Any] = {}


def outcome_of(trial: int, ended: Sequence[Summary | Exception], metric: str) -> Outcome:
    """Return the outcome of a trial, from the summaries or errors of its runs."""
    spent = {"seconds": round(sum(run["seconds"] for run in ended if isinstance(run, dict)), 3)}

    def without_value(state: str, reason: str) -> Outcome:
        return Outcome(state, None, spent | {"reason": reason})

    scores, pruned = [], None
    for run in ended:
        if isinstance(run, Exception):
            # its last worker is not dead after all, or it is no fault of the trial
            if isinstance(run.__cause__, BlockingIOError) or fault_of(run):
                return Outcome("interrupted")
            log.warning("trial %d failed", trial, exc_info=run)
            return without_value("failed", in_one_line(run))
        if run["status"] == "interrupted":
            return Outcome("interrupted")
        if run["status"] == "diverged":
            return without_value("diverged", f"diverged at step {run['diverged_at']}")
        if run["status"] == "pruned":
            pruned = pruned or {"reason": f"pruned after epoch {round(run['epoch'])}"}
        elif metric not in run["best"]:
            return without_value("failed", f"no epoch was validated, so there is no {metric}")
        scores.append(run["best"].get(metric))
    if pruned is not None:
        return Outcome("pruned", scores[0], spent | pruned)
    return Outcome("finished", statistics.median(scores), spent)


def in_one_line(error: Exception) -> str:
    """Return the reason that is recorded of a trial which failed with this error."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    first = next(iter(str(error).strip().splitlines()), "")
    return masked(f"{kind}{first}")[:500]
