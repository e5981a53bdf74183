"""A learning-rate range test: short runs at many learning rates, as one population.

Smith (2017, arXiv:1506.01186, section 3.3) lets the rate grow during one run; here every rate has a
run of its own, so that none inherits what another did to the weights.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np

from experiments.core.config import build
from experiments.errors import UserError
from experiments.tracking.jsonl import JsonLines, write_json
from experiments.tracking.terminal import number
from experiments.tracking.tracker import Trackers
from experiments.training.devices import announce, split_processor
from experiments.training.kept import Kept
from experiments.training.lock import exclusive
from experiments.training.population_fit import fit_together, open_lane
from experiments.training.population_lane import Member
from experiments.training.population_options import LrRange
from experiments.training.signals import StopRequest
from experiments.viz.lr_range import range_figure

NEEDS_RUN = False


def main(config: dict[str, Any], directory: Path, source: Path | None) -> None:
    """Writes `lr_range.json` and `figures/lr_range.png`, and says which rates learn."""
    wanted: LrRange = build(config["lr_range"])
    if wanted.low >= wanted.high:
        raise UserError(f"lr_range.low={wanted.low:g} must be below lr_range.high={wanted.high:g}")
    split_processor(wanted.lanes)
    options = build(config["population"])
    rates = np.geomspace(wanted.low, wanted.high, wanted.lanes)
    kept, members = Kept(), []
    announce()
    print(f"{wanted.lanes} learning rates, {wanted.epochs} epochs each", flush=True)
    with StopRequest() as stop, exclusive(directory):
        for rate in rates:
            own = copy.deepcopy(config)
            own["optim"]["learning_rate"] = float(rate)
            own["trainer"] |= {"epochs": wanted.epochs, "checkpoints": False, "figures": False}
            folder = directory / "lanes" / f"{rate:.3g}"
            folder.mkdir(parents=True, exist_ok=True)
            own["name"] = folder.name
            members.append(Member(open_lane(own, kept), folder, Trackers([JsonLines()]), stop))
        populations = directory / "populations"
        summaries = fit_together(
            members, populations, width=options.width, most=options.most, test=False
        )
    rows = [
        {
            "learning_rate": float(rate),
            "status": summary["status"],
            "train/loss": summary.get("train/epoch_loss"),
            "val/loss": summary.get("val/loss"),
        }
        for rate, summary in zip(rates, summaries, strict=True)
    ]
    write_json(directory / "lr_range.json", {"rows": rows})
    figures = directory / "figures"
    figures.mkdir(exist_ok=True)
    range_figure(rows).savefig(figures / "lr_range.png", dpi=120)
    learnt = [row for row in rows if row["status"] == "finished" and row["val/loss"] is not None]
    if not learnt:
        raise UserError(
            f"no learning rate from {wanted.low:g} to {wanted.high:g} trained to an end"
        )
    best = min(learnt, key=lambda row: row["val/loss"])
    print(f"lowest      val/loss {number(best['val/loss'])}")
    print(f"            optim.learning_rate={best['learning_rate']:.3g}")
    print(f"figure      {figures / 'lr_range.png'}")
