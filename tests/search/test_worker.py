"""A worker runs the trials of a study as normal runs and leaves what came out of it."""

import csv
import json
import shlex
import shutil
import signal

import jax
import pytest
import yaml

from experiments.errors import Exit, UserError
from experiments.search import actions, worker
from experiments.search.configs import Configs
from experiments.search.plan import plan_of_arguments
from experiments.search.results import ending
from experiments.search.study import CANCEL, create_study
from experiments.search.worker import work
from experiments.training.loop import Training
from support import ROOT


def results(study) -> list[dict]:
    with (study.folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_study_is_run_to_its_end(make_study, tmp_path):
    parameters = {
        "optim.learning_rate": {"distribution": "log_uniform_values", "min": 1e-3, "max": 0.1},
        "model.hidden": {"values": [[8], [4]]},
    }
    study = make_study(parameters=parameters, overrides=["callbacks=mistakes"])
    work(study.folder, ROOT / "conf")
    rows = results(study)
    columns = ["trial", "state", "value", "seconds", "run", "optim.learning_rate", "model.hidden"]
    assert list(rows[0]) == columns
    assert [row["state"] for row in rows] == ["finished"] * 4
    best = max(rows, key=lambda row: float(row["value"]))
    for row in rows:
        folder = study.folder / row["run"]
        assert (folder / "mistakes.csv").is_file()
        summary = json.loads((folder / "summary.json").read_text())
        assert float(row["value"]) == summary["best"]["val/accuracy"]
        config = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
        assert config["optim"]["learning_rate"] == float(row["optim.learning_rate"])
        tested = any(name.startswith("test/") for name in summary)
        assert tested == (row is best)  # the test split is for the winner alone
    command = (study.folder / "best.txt").read_text()
    assert f"optim.learning_rate={best['optim.learning_rate']}" in command
    conf = tmp_path / "conf"  # the recipe composes to the config of the best trial
    shutil.copytree(ROOT / "conf", conf)
    shutil.copy(study.folder / "best.yaml", conf / "experiment")
    assert f"the best of {len(rows)} that ended" in (study.folder / "best.yaml").read_text()
    recomposed = Configs(conf, ["experiment=best"]).plain()
    again = Configs(conf, [*study.plan.overrides, *shlex.split(command)[-2:]]).plain()
    assert recomposed == again


@pytest.mark.slow
def test_several_seeds_have_their_median_as_score(make_study):
    study = make_study(n_trials=1, seeds=3, seed=5)
    work(study.folder, ROOT / "conf")
    values, seeds = [], []
    for index in range(3):
        folder = study.folder_of(0) / f"seed_{index}"
        values.append(json.loads((folder / "summary.json").read_text())["best"]["val/accuracy"])
        seeds.append(yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())["seed"])
    assert len(set(seeds)) == 3
    assert float(results(study)[0]["value"]) == sorted(values)[1]
    command = shlex.split((study.folder / "best.txt").read_text())
    assert command[-2:] == ["seed=0,1,2", "side_by_side=1"]
    again = plan_of_arguments(command[2:-1], {"side_by_side": 1}, ROOT / "conf")
    study = create_study(again, study.folder.with_name("again"), ROOT / "conf")
    work(study.folder, ROOT / "conf")
    assert [float(row["value"]) for row in results(study)] == values


def test_a_trial_that_fails_or_diverges_is_recorded_and_ends_nothing(make_study):
    rates = {"optim.learning_rate": {"values": [1e-3, 1e30]}, "optim": {"value": "sgd"}}
    study = make_study(parameters=rates, method="grid", n_trials=2)
    work(study.folder, ROOT / "conf")
    assert [row["state"] for row in results(study)] == ["finished", "diverged"]
    assert "diverged at step" in study.trials()[1].user_attrs["reason"]
    study = make_study(study.folder.with_name("b"), overrides=["trainer.monitor=f1"], n_trials=1)
    work(study.folder, ROOT / "conf")
    assert results(study)[0]["state"] == "failed"
    assert "trainer.monitor=f1" in study.trials()[0].user_attrs["reason"]


def test_a_trial_that_falls_behind_is_pruned(make_study):
    rates = {"optim.learning_rate": {"values": [0.01, 1e-6]}}
    early = {"type": "hyperband", "min_iter": 1, "eta": 2}
    study = make_study(parameters=rates, method="grid", n_trials=2, early_terminate=early)
    work(study.folder, ROOT / "conf")
    assert [row["state"] for row in results(study)] == ["finished", "pruned"]
    assert study.trials()[1].user_attrs["reason"] == "pruned after epoch 1"
    summary = json.loads((study.folder_of(1) / "summary.json").read_text())
    assert summary["status"] == "pruned"


def test_a_trial_is_stopped_by_hand_and_the_others_go_on(make_study, monkeypatch):
    lengths = {"trainer.epochs": {"values": [9000, 1]}}
    study = make_study(parameters=lengths, method="grid", n_trials=2, overrides=["data.limit=64"])
    report = worker.Reporter.log

    def log(self, step, scalars):
        report(self, step, scalars)
        if "val/accuracy" in scalars and self.trial.number == 0:
            actions.stop(study.folder_of(0), ROOT / "conf", {})

    monkeypatch.setattr(worker.Reporter, "log", log)
    work(study.folder, ROOT / "conf")
    assert [row["state"] for row in results(study)] == ["pruned", "finished"]
    assert study.trials()[0].user_attrs["reason"].startswith("stopped after epoch")
    with pytest.raises(UserError, match="this trial is finished; there run none"):
        actions.stop(study.folder_of(1), ROOT / "conf", {})
    with pytest.raises(UserError, match="name the folder of a trial"):
        actions.stop(study.folder, ROOT / "conf", {})


def test_what_a_trial_costs_is_a_metric_too(make_study):
    """Of a front nothing is tested: it is not settled yet which trial will be used."""
    widths = {"model.hidden": {"values": [[4], [16]]}}
    goals = {"metric": ["val/accuracy", "parameters"], "goal": ["maximize", "minimize"]}
    study = make_study(parameters=widths, method="grid", n_trials=2, **goals)
    work(study.folder, ROOT / "conf")
    rows = results(study)
    assert [float(row["parameters"]) for row in rows] == [310, 1210]
    assert rows[0]["front"] == "true"  # no other trial is as small
    commands = (study.folder / "best.txt").read_text()
    assert commands.count("run.py") == sum(row["front"] == "true" for row in rows)
    for row in rows:
        summary = json.loads((study.folder / row["run"] / "summary.json").read_text())
        assert float(row["val/accuracy"]) == summary["best"]["val/accuracy"]
        assert not any(name.startswith("test/") for name in summary)
    assert "mode=evaluate" in ending(study)


def test_a_database_serves_as_well_as_the_journal(make_study, tmp_path):
    study = make_study(n_trials=1, storage=f"sqlite:///{tmp_path}/study.db")
    work(study.folder, ROOT / "conf")
    assert results(study)[0]["state"] == "finished"
    assert not (study.folder / "journal.log").exists()
    with pytest.raises(UserError, match="say name="):
        make_study(tmp_path / "other", storage=f"sqlite:///{tmp_path}/study.db")


def test_a_signal_saves_the_trial_and_another_worker_goes_on(make_study, monkeypatch):
    study = make_study(n_trials=1, overrides=["trainer.epochs=400", "data.batch_size=1"])
    report = worker.Reporter.log

    def log(self, step, scalars):
        report(self, step, scalars)
        if "val/accuracy" in scalars:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(worker.Reporter, "log", log)
    with pytest.raises(Exit) as stopped:
        work(study.folder, ROOT / "conf")
    assert stopped.value.code == 75
    summary = json.loads((study.folder_of(0) / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert results(study)[0]["state"] == "waiting"
    (trial,) = study.claim(1)  # at once, without waiting for a heartbeat
    assert trial.claim.attempt == 1
    assert study.claims.deaths("0") == 0


@pytest.mark.slow
@pytest.mark.parametrize("side_by_side", [1, 8])
def test_a_static_configuration_is_compiled_once(make_study, own_cache, side_by_side, monkeypatch):
    parameters = {
        "optim.learning_rate": {"distribution": "log_uniform_values", "min": 1e-3, "max": 0.1},
        "optim.b1": {"min": 0.5, "max": 0.95},
        "seed": {"min": 1, "max": 9},
        "model.hidden": {"values": [[8], [4]]},
    }
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(own_cache))
    study = make_study(parameters=parameters, n_trials=8, side_by_side=side_by_side)
    events: list[tuple[str, int]] = []  # (what was compiled, trials that had ended by then)

    def note(event: str, _seconds: float, **what) -> None:
        if event.endswith("backend_compile_duration"):
            ended = sum(trial.state.is_finished() for trial in study.trials())
            events.append((str(what.get("fun_name")), ended))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        work(study.folder, ROOT / "conf")
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    order = [tuple(trial.user_attrs["values"]["model.hidden"]) for trial in study.trials()]
    assert len(set(order)) == 2
    first = {order.index(hidden) for hidden in set(order)}  # the trials that may compile
    assert {ended for _, ended in events if ended < 8} == (first if side_by_side == 1 else {0})
    assert [what for what, _ in events].count("jit(train)") == 2


@pytest.mark.slow
@pytest.mark.core
def test_trials_side_by_side_come_to_what_they_come_to_alone(make_study, tmp_path):
    """Also one that diverges and those of another width."""
    parameters = {
        "optim.learning_rate": {"values": [1e-3, 1e-2, 1e30]},
        "model.hidden": {"values": [[8], [4]]},
        "optim": {"value": "sgd"},
    }
    plan = {"parameters": parameters, "method": "grid", "n_trials": 6}
    alone = make_study(tmp_path / "alone", **plan)
    together = make_study(tmp_path / "together", side_by_side=6, **plan)
    for study in (alone, together):
        work(study.folder, ROOT / "conf")
    for one, other in zip(results(alone), results(together), strict=True):
        assert one["state"] == other["state"]
        assert one["value"] == other["value"] == "" or float(one["value"]) == pytest.approx(
            float(other["value"]), abs=0.01
        )
    assert len(list((together.folder / "populations").iterdir())) == 2  # one a width


@pytest.mark.slow
def test_the_printed_command_reproduces_the_winner(make_study, run_cli, tmp_path):
    """Also where trials of several seeds have shared their batches, and so one order of them."""
    study = make_study(
        parameters={"seed": {"values": [4, 7, 9]}},
        method="grid",
        n_trials=3,
        side_by_side=3,
        seed=4,
    )
    work(study.folder, ROOT / "conf")
    command, again = (study.folder / "best.txt").read_text(), tmp_path / "again"
    assert run_cli(*shlex.split(command)[2:], f"study={again}", folders=False)[0] == 0
    for trial in range(3):  # the seeds are replicates of the winner
        ours, theirs = (
            json.loads((folder / "trials" / str(trial) / "summary.json").read_text())
            for folder in (study.folder, again)
        )
        for name in ("train/epoch_loss", "val/accuracy", "val/loss", "test/loss"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)
    assert "shuffle_seed: 4" in (study.folder / "best.yaml").read_text()


@pytest.mark.slow
def test_what_breaks_a_population_is_found_by_running_its_trials_alone(make_study, monkeypatch):
    def validate(training):
        if len(training.trials) > 1 or training.trials[0].directory.name == "1":
            raise UserError("the second one breaks")
        whole(training)

    whole = Training._validate
    monkeypatch.setattr(Training, "_validate", validate)
    study = make_study(n_trials=2, side_by_side=2)
    work(study.folder, ROOT / "conf")
    assert [row["state"] for row in results(study)] == ["finished", "failed"]
    assert "the second one breaks" in study.trials()[1].user_attrs["reason"]


def test_workers_stop_when_the_study_is_cancelled(make_study):
    study = make_study()
    (study.folder / CANCEL).touch()
    with pytest.raises(Exit) as stopped:
        work(study.folder, ROOT / "conf")
    assert stopped.value.code == 75


def test_a_trial_that_kills_its_workers_is_given_up(make_study):
    study = make_study(n_trials=2, attempts=2)
    for _ in range(2):
        (trial,) = study.claim(1)
        assert trial.number == 0
        study.claims.free_claims_of(study.worker)
    (trial,) = study.claim(1)
    assert trial.number == 1
    assert "2 workers died" in study.trials()[0].user_attrs["reason"]
