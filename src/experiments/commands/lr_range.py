"""Test a range of learning rates by short runs side by side, one for each rate.

Smith (2017, arXiv:1506.01186, section 3.3) lets the rate grow during one run; here every rate has
its own run, so that none starts from weights that another rate has changed.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np

from experiments.commands.train import shown_together
from experiments.core.config import build
from experiments.errors import UserError
from experiments.machine import StopRequest
from experiments.tracking.jsonl import JsonLines, write_json
from experiments.tracking.terminal import number
from experiments.tracking.tracker import Trackers
from experiments.training.loop import fit
from experiments.training.options import LrRange
from experiments.training.runtime import announce, split_processor
from experiments.training.setup import Setups
from experiments.training.trial import Trial
from experiments.viz.drawing import save
from experiments.viz.figures import range_figure


def main(config: dict[str, Any], directory: Path, source: Path | None) -> None:
    """Write `lr_range.json` and `figures/lr_range.png`, and print the rate with the lowest loss."""
    wanted: LrRange = build(config["lr_range"])
    if wanted.low >= wanted.high:
        raise UserError(f"lr_range.low={wanted.low:g} must be below lr_range.high={wanted.high:g}")
    split_processor(wanted.rates)
    options = build(config["population"])
    rates = np.geomspace(wanted.low, wanted.high, wanted.rates)
    setups, trials = Setups(), []
    announce()
    with StopRequest() as stop:
        for rate in rates:
            own = copy.deepcopy(config)
            own["optim"]["learning_rate"] = float(rate)
            length = {"epochs": wanted.epochs, "steps": None, "eval_every": None}
            own["trainer"] |= {**length, "checkpoints": False, "figures": False}
            folder = directory / "trials" / f"{rate:.3g}"
            folder.mkdir(parents=True, exist_ok=True)
            own["name"] = folder.name
            trackers = Trackers([JsonLines()])
            trials.append(Trial(setups.of(own), own, folder, trackers, stop))
        limits = {"width": options.width, "most": options.most}
        with shown_together(trials, directory, f"{wanted.rates} learning rates") as shown:
            summaries = fit(trials, directory / "populations", test=False, shown=shown, **limits)
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
    save(range_figure(rows), figures / "lr_range.png")
    finished = [row for row in rows if row["status"] == "finished" and row["val/loss"] is not None]
    if not finished:
        raise UserError(f"no run with a rate from {wanted.low:g} to {wanted.high:g} finished")
    best = min(finished, key=lambda row: row["val/loss"])
    print(f"lowest      val/loss {number(best['val/loss'])}")
    print(f"            optim.learning_rate={best['learning_rate']:.3g}")
    print(f"figure      {figures / 'lr_range.png'}")
