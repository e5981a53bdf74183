"""Runs of a folder side by side: their ranking, their differences, and the spread of seeds."""

import json
from dataclasses import replace

import pytest
import yaml
from PIL import Image

from experiments.errors import UserError
from experiments.viz.pages import comparison
from experiments.viz.pages.runs_page import compare_runs
from experiments.viz.pages.settings import difference, find, in_lines, spread, study_settings


def write_run(folder, value, *, monitor="val/accuracy", mode="max", said=(), **config):
    (folder / ".hydra").mkdir(parents=True)
    settings = {"name": folder.name, "seed": 0, "optim": {"learning_rate": 0.1}}
    settings |= {"data": {"name": "digits"}, "objective": {"_target_": "package.Classification"}}
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(settings | config))
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(said)))
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


def names_of(settings):
    return [one.name for one in settings]


def test_runs_are_grouped_by_data_and_objective_and_ranked(tmp_path, capsys):
    write_run(tmp_path / "good", 0.9)
    write_run(tmp_path / "bad", 0.2, optim={"learning_rate": 0.5})
    write_run(tmp_path / "broken", None, optim={"learning_rate": 9.0})
    write_run(tmp_path / "mnist", 0.99, data={"name": "mnist"})
    vae = {"monitor": "val/elbo_loss", "mode": "min", "objective": {"_target_": "a.Variational"}}
    write_run(tmp_path / "vae", 95.0, **vae)
    write_run(tmp_path / "deeper" / "vae", 90.0, init={"scale": 2.0}, **vae)
    groups = find([tmp_path]).groups
    assert list(groups) == [
        ("digits", "classification", "val/accuracy"),
        ("digits", "variational", "val/elbo_loss"),
        ("mnist", "classification", "val/accuracy"),
    ]
    digits, variational, _ = groups.values()
    assert [one.origin for one in digits] == ["good", "bad", "broken"]
    assert names_of(digits)[:2] == ["learning_rate=0.1", "learning_rate=0.5"]
    assert [one.origin for one in variational] == ["deeper/vae", "vae"]
    compare_runs([tmp_path], tmp_path)
    shown = capsys.readouterr().out
    assert shown.index("good") < shown.index("bad")
    page = (tmp_path / "report.html").read_text()
    assert f"<title>{tmp_path.name}</title>" in page
    assert page.count('alt="samples"') == 6  # not what was drawn under way
    row = '<td>a &lt; b</td><td class="number">3</td><td class="number">0.5124</td>'
    assert page.count(row) == 6
    # what differs comes first
    assert page.index(">optim.learning_rate<") < page.index(">val/accuracy<")


def test_seeds_are_one_setting_with_a_mean_and_a_deviation(tmp_path, capsys):
    for seed, value in enumerate((0.90, 0.92, 0.94)):
        write_run(tmp_path / f"good{seed}", value, seed=seed, trainer={"shuffle_seed": seed})
        write_run(tmp_path / f"near{seed}", value - 0.005, seed=seed, optim={"learning_rate": 0.3})
        write_run(tmp_path / f"far{seed}", value - 0.5, seed=seed, optim={"learning_rate": 9.0})
    write_run(tmp_path / "single", 0.5, seed=1, optim={"learning_rate": 0.5})
    (settings,) = find([tmp_path]).groups.values()
    good, near, single, far = settings
    assert [len(one.runs) for one in settings] == [3, 3, 1, 3]
    assert spread(good.validation) == "0.9200 ± 0.02"
    low, high = near.behind(good)
    assert (low + high) / 2 == pytest.approx(0.005)
    assert difference(good, settings) == "best"
    assert "within noise" in difference(near, settings)
    assert "more than noise" in difference(far, settings)
    assert difference(single, settings) == ""  # one run has no deviation
    pairs = [replace(one, runs=[one.runs[0]] * 2) for one in (good, far)]  # without any spread
    assert difference(pairs[1], pairs) == "too few seeds to tell"
    assert difference(near, [single, near, far]) == "best of several seeds"
    compare_runs([tmp_path], tmp_path)
    assert "0.9200 ± 0.02" in capsys.readouterr().out
    assert "Means and standard deviations over seeds" in (tmp_path / "report.html").read_text()
    assert "Behind the best" in comparison.section(settings)
    assert "Behind the best" not in comparison.section([good])  # nothing is compared


def test_a_run_that_is_repeated_is_no_replicate(tmp_path, capsys):
    for name, value in (("01", 0.90), ("02", 0.91)):
        write_run(tmp_path / name, value, name="run")
    ((one,),) = find([tmp_path]).groups.values()
    assert one.validation == [0.91]
    compare_runs([tmp_path], tmp_path)
    assert "left out    runs that were repeated later: 1" in capsys.readouterr().out


def test_a_smaller_loss_is_ahead(tmp_path):
    for seed, value in enumerate((-1.0, -1.1, -1.2)):
        loss = {"monitor": "val/loss", "mode": "min", "seed": seed}
        write_run(tmp_path / f"low{seed}", value, **loss)
        write_run(tmp_path / f"high{seed}", value + 5, optim={"learning_rate": 9.0}, **loss)
    ((low, high),) = find([tmp_path]).groups.values()
    assert low.origin == "low0"
    assert sum(high.behind(low)) / 2 == pytest.approx(5.0)


def test_what_is_no_training_is_left_out_and_counted(tmp_path, capsys):
    write_run(tmp_path / "run", 0.9)
    evaluation = tmp_path / "evaluation"
    write_run(evaluation, 0.9)
    (evaluation / "summary.json").write_text(json.dumps({"best": {}, "test/accuracy": 0.9}))
    (tmp_path / "rates" / "trials").mkdir(parents=True)
    (tmp_path / "rates" / "lr_range.json").write_text("{}")
    write_run(tmp_path / "rates" / "trials" / "0.1", 0.8)
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "predictions.csv").write_text("index\n")
    found = find([tmp_path])
    assert [run.name for run in found.runs] == ["run"]
    compare_runs([tmp_path], tmp_path)
    left_out = "left out    evaluations: 1, learning-rate tests: 1"
    assert left_out in capsys.readouterr().out


def write_study(folder, rows, parameters, **plan):
    """A study of trials with (value, test, values); its runs are in their folders."""
    goal = {"metric": "val/accuracy", "goal": "maximize"}
    folder.mkdir(parents=True)
    names = ["trial", "state", "value", "seconds", "run", *parameters]
    lines = [",".join(names)]
    for number, (value, *values) in enumerate(rows):
        run = folder / "trials" / str(number)
        write_run(run, value, optim={"learning_rate": values[0]})
        lines.append(
            ",".join(map(str, [number, "finished", value, 1.0, f"trials/{number}", *values]))
        )
    (folder / "results.csv").write_text("\n".join(lines) + "\n")
    plan = {"name": folder.name, "parameters": {key: {} for key in parameters}} | goal | plan
    (folder / "study.yaml").write_text(yaml.safe_dump(plan))


def test_a_study_is_one_row_and_its_seeds_are_replicates(tmp_path):
    rows = [(0.99, 0.1, 0), (0.60, 0.1, 1), (0.90, 0.2, 0), (0.92, 0.2, 1)]
    write_study(tmp_path / "rates", rows, ["optim.learning_rate", "seed"])
    write_study(tmp_path / "again" / "rates", rows[:2], ["optim.learning_rate", "seed"])
    write_run(tmp_path / "run", 0.5)
    ((best, again, run),) = find([tmp_path]).groups.values()
    assert best.validation == [0.90, 0.92]  # not the luckiest seed of the other setting
    assert best.origin == "study rates, the best of 2 settings"
    assert again.validation == [0.99, 0.60]  # of another study of this name
    assert again.origin == "study rates"
    assert run.origin == "run"


def test_a_trial_that_was_ended_early_is_no_replicate(tmp_path):
    folder = tmp_path / "study"
    rows = [(0.90, 0.2, 0), (0.92, 0.2, 1), (0.10, 0.2, 2)]
    write_study(folder, rows, ["optim.learning_rate", "seed"])
    table = folder / "results.csv"
    table.write_text(table.read_text().replace("2,finished", "2,pruned"))
    (setting,) = study_settings(folder, folder)
    assert in_lines([setting]) == ["learning_rate=0.2: 2 seeds, val/accuracy 0.9100 ± 0.014"]


def test_choices_stand_for_the_keys_that_follow_from_them(tmp_path):
    adam = {"_target_": "a.optimizer", "rule": "adam", "b1": 0.9, "learning_rate": 0.001}
    sgd = {"_target_": "a.optimizer", "rule": "sgd", "learning_rate": 0.1}
    write_run(tmp_path / "a", 0.9, optim=adam)  # the default, unsaid
    write_run(tmp_path / "b", 0.8, optim=adam | {"b1": 0.8}, said=["optim=adam", "optim.b1=0.8"])
    write_run(tmp_path / "c", 0.7, optim=sgd, said=["optim=sgd"])
    (settings,) = find([tmp_path]).groups.values()
    assert [dict(one.values)["optim"] for one in settings] == ["default", "adam", "sgd"]
    assert "optim.rule" not in settings[0].values
    note = {"hydra": {"runtime": {"choices": {"optim": "adam"}}}}
    (tmp_path / "a" / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(note))
    (settings,) = find([tmp_path]).groups.values()
    assert [dict(one.values)["optim"] for one in settings] == ["adam", "adam", "sgd"]


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no finished training \(summary.json\)"):
        compare_runs([tmp_path], tmp_path)
