"""Runs of a folder side by side: their ranking, their differences, and the spread of seeds."""

import json

import pytest
import yaml
from PIL import Image

from experiments.errors import UserError
from experiments.viz.pages.runs_page import (
    compare_runs,
    differences,
    families,
    read_runs,
    replicates,
    spread,
)


def write_run(folder, value, *, monitor="val/accuracy", mode="max", **config):
    (folder / ".hydra").mkdir(parents=True)
    settings = {"name": folder.name, "seed": 0, "optim": {"learning_rate": 0.1}} | config
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(settings))
    best = {} if value is None else {"epoch": 2.0, monitor: value}
    summary = {"status": "finished", "best": best, "monitor": monitor, "monitor_mode": mode}
    summary["classes"] = [{"class": "a < b", "support": 3, "f1": 0.51239}]
    summary |= {"seconds": 1.5, "parameters": 1234, "epoch": 2.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [{"step": 10 * e, "epoch": float(e), monitor: (value or 0) / (3 - e)} for e in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "figures").mkdir()
    for name in ("samples", "samples_00000010"):
        Image.new("RGB", (40, 40)).save(folder / "figures" / f"{name}.png")


def test_runs_are_ranked_by_the_metric_of_their_family(tmp_path, capsys):
    write_run(tmp_path / "good", 0.9)
    write_run(tmp_path / "bad", 0.2, optim={"learning_rate": 0.5})
    write_run(tmp_path / "broken", None)
    write_run(tmp_path / "vae", 95.0, monitor="val/elbo_loss", mode="min")
    write_run(tmp_path / "deeper" / "vae", 90.0, monitor="val/elbo_loss", mode="min")
    accuracy, loss = families(read_runs(tmp_path))
    assert [run.name for run in accuracy] == ["good", "bad", "broken"]
    assert [run.name for run in loss] == ["deeper/vae", "vae"]
    assert differences(accuracy) == ["optim.learning_rate"]
    compare_runs(tmp_path)
    shown = capsys.readouterr().out
    assert shown.index("good") < shown.index("bad")
    assert "deeper/vae" in shown
    page = (tmp_path / "report.html").read_text()
    assert page.count('alt="samples"') == 5  # not what was drawn under way
    assert "optim.learning_rate" in page
    assert page.count("<td>a &lt; b</td><td>3</td><td>0.5124</td>") == 5


def test_seeds_are_shown_as_a_mean_and_their_spread(tmp_path, capsys):
    for seed, value in enumerate((0.90, 0.92, 0.94)):
        write_run(tmp_path / f"seed{seed}", value, seed=seed)
    write_run(tmp_path / "other", 0.5, seed=1, optim={"learning_rate": 0.5})
    (group,) = replicates(read_runs(tmp_path))
    assert len(group) == 3
    assert spread(group) == pytest.approx((0.92, 0.02, 0.90, 0.94))
    compare_runs(tmp_path)
    assert "0.9200 ± 0.02000, 0.9000 to 0.9400" in capsys.readouterr().out
    assert "Replicates" in (tmp_path / "report.html").read_text()


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no finished run \(summary.json\) below"):
        compare_runs(tmp_path)
