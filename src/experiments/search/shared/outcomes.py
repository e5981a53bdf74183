"""How a trial comes out, by the runs that it consists of."""

import logging
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.errors import UserError, masked, out_of_memory, refusal_of_jax
from experiments.machine import fault_of
from experiments.training.metrics import result

log = logging.getLogger(__name__)

Summary = dict[str, Any]

STOPPED = ("pruned", "stopped")
"""The statuses of runs that were ended early: by `early_terminate`, or by `stop=`."""


class Outcome(NamedTuple):
    """The end of a trial: one of the study's states or `interrupted`, its values, attributes.

    The values are those of the study's metrics, in their order.
    """

    state: str
    values: list[float] | None = None
    attributes: Mapping[str, Any] = {}


def outcome_of(trial: int, ended: Sequence[Summary | Exception], metrics: Sequence[str]) -> Outcome:
    """Return the outcome of a trial, from the summaries or errors of its runs."""
    spent = {"seconds": round(sum(run["seconds"] for run in ended if isinstance(run, dict)), 3)}

    def without_value(state: str, reason: str) -> Outcome:
        return Outcome(state, None, spent | {"reason": reason})

    scores: list[list[Any]] = []
    pruned = None
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
        if run["status"] in STOPPED:
            pruned = pruned or {"reason": f"{run['status']} after epoch {round(run['epoch'], 2):g}"}
        elif lost := [name for name in metrics if result(run, name) is None]:
            return without_value("failed", f"no epoch was validated, so there is no {lost[0]}")
        scores.append([result(run, name) for name in metrics])
    if pruned is not None:  # with several metrics Optuna takes no value of such a trial
        values = None if None in scores[0] or len(metrics) > 1 else scores[0]
        return Outcome("pruned", values, spent | pruned)
    medians = [statistics.median(each) for each in zip(*scores, strict=True)]
    return Outcome("finished", medians, spent)


def in_one_line(error: Exception) -> str:
    """Return the reason that is recorded of a trial which failed with this error."""
    if (known := refusal_of_jax(error) or out_of_memory(error)) is not None:
        return "; ".join(known.splitlines())
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    first = next(iter(str(error).strip().splitlines()), "")
    return masked(f"{kind}{first}")[:500]
