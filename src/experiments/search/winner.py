"""The end of a study: the test split is looked at once, for the winner."""

import logging
import statistics
import time
from typing import Any

from experiments.search.claims import Heart
from experiments.search.execution import TrialStop, prepare, run_folders, run_in
from experiments.search.results import WINNER, write_results
from experiments.search.study import Study
from experiments.training.kept import Kept
from experiments.training.signals import StopRequest

log = logging.getLogger(__name__)


def conclude(study: Study, heart: Heart, stop: StopRequest, kept: Kept) -> None:
    """Tests the best trial, in one worker of all, and writes the final results."""
    best = study.best()
    while best is not None and study.optuna.user_attrs.get(WINNER, {}).get("trial") != best.number:
        key = f"winner-{best.number}"
        claim = study.claims.take(key, study.claims.latest().get(key), study.claims.now())
        if claim is None:
            time.sleep(1)
        else:
            own = TrialStop(stop)
            heart.keep(claim, own.lose)
            tested = evaluate(study, best.number, best.user_attrs["values"], own, kept)
            if own.name is not None:
                heart.release(claim)
                return
            study.optuna.set_user_attr(WINNER, {"trial": best.number} | tested)
            heart.drop(claim)
    write_results(study)


def evaluate(
    study: Study, trial: int, values: dict[str, Any], stop: TrialStop, kept: Kept
) -> dict[str, float]:
    """`test/*` of a finished trial: of its runs' best weights, the median over its seeds."""
    found: list[dict[str, Any]] = []
    for index, folder in enumerate(run_folders(study, study.folder_of(trial))):
        config = prepare(study, trial, values, folder, index)
        if not config["trainer"]["checkpoints"]:
            log.warning("the winner is not tested: trainer.checkpoints=false kept no weights")
            return {}
        found.append(run_in(config, folder, [], stop, kept, test=True))
    names = [name for name in found[0] if name.startswith("test/")]
    return {name: statistics.median(run[name] for run in found) for name in names}
