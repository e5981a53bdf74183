"""W&B dashboards as code: saved to the test server, or written as JSON without an account."""

import json
import subprocess
import sys

import pytest

from support import ROOT

wr = pytest.importorskip("wandb_workspaces.reports.v2", reason="needs the extra `dashboard`")
ws = pytest.importorskip("wandb_workspaces.workspaces")

FAMILY = {
    "objective": {"_target_": "experiments.objectives.classification.Classification"},
    "logger": {"entity": None, "project": "digits"},
}


def runs_below(folder) -> None:
    """Three runs of one family; the second is the best."""
    for number, (rate, accuracy) in enumerate([(1e-4, 0.5), (1e-3, 0.9), (1e-2, 0.7)]):
        run = folder / f"run{number}"
        (run / ".hydra").mkdir(parents=True)
        (run / "figures").mkdir()
        (run / "figures" / "confusion_matrix.png").touch()
        (run / "wandb_run.json").write_text(json.dumps({"id": f"id{number}"}))
        config = FAMILY | {"optim": {"learning_rate": rate, "b1": 0.9}}
        (run / ".hydra" / "config.yaml").write_text(json.dumps(config))
        summary = {"status": "finished", "best": {"val/accuracy": accuracy, "val/loss": 1.0}}
        (run / "summary.json").write_text(json.dumps(summary))


def report(*arguments) -> str:
    command = [sys.executable, str(ROOT / "report.py"), *map(str, arguments), "wandb=workspace"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=arguments[0])
    assert done.returncode == 0, done.stderr
    return done.stdout


def panels_of(view: dict) -> dict[str, list[dict]]:
    sections = view["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def check_view(view: dict) -> None:
    panels = panels_of(view)
    assert {"Validation", "Search", "Comparison", "Figures", "System"} <= set(panels)
    assert panels["Validation"][0]["config"]["metrics"] == ["val/accuracy"]
    parallel, importance, scatter = panels["Search"]
    axes = [column["accessor"] for column in parallel["config"]["columns"]]
    assert axes == ["config:optim.value.learning_rate", "summary:best.val/accuracy"]
    assert importance["viewType"] == "Parameter Importance"
    assert scatter["config"]["xAxis"] == "config:optim.value.learning_rate"
    assert scatter["config"]["xAxisLogScale"] is True
    assert panels["Figures"][0]["config"]["mediaKeys"] == ["confusion_matrix"]
    assert panels["Comparison"][0]["viewType"] == "Run Comparer"
    colours = view["section"]["customRunColors"]
    bright = sorted(colours, key=lambda run: sum(bytes.fromhex(colours[run][1:])), reverse=True)
    assert bright == ["id1", "id2", "id0"]


@pytest.mark.slow
def test_views_and_a_report_are_saved_through_the_api(server, tmp_path):
    runs_below(tmp_path)
    printed = report(tmp_path)
    saved = list(server.views.values())
    assert [view["type"] for view in saved] == ["project-view", "runs"]
    assert saved[0]["displayName"] == "Classification"
    assert saved[0]["project"]["name"] == "digits"
    check_view(json.loads(saved[0]["spec"]))
    document = json.loads(saved[1]["spec"])
    grids = [block for block in document["blocks"] if block["type"] == "panel-grid"]
    assert len(grids) == len(panels_of(json.loads(saved[0]["spec"])))
    assert server.url in printed or "wandb.ai" in printed
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.slow
def test_without_an_account_the_specification_is_written(client, tmp_path):
    runs_below(tmp_path)
    printed = report(tmp_path)
    check_view(json.loads((tmp_path / "workspace_Classification.json").read_text()))
    assert json.loads((tmp_path / "workspace_report.json").read_text())["blocks"]
    assert "wandb login" in printed


def test_runs_that_were_never_logged_are_no_dashboard(client, tmp_path):
    command = [sys.executable, str(ROOT / "report.py"), str(tmp_path), "wandb=workspace"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "was logged to W&B" in done.stderr
