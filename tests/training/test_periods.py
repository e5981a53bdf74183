"""Runs counted in steps, evaluated every so many, and what follows from these evaluations."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.cli.python import compose
from experiments.core.config import check
from experiments.errors import UserError
from experiments.search.worker import Reporter
from experiments.training.groups import longer
from experiments.training.loop import fit
from experiments.training.metrics import Best, Metrics, Periods
from experiments.training.options import check_lengths, check_said
from experiments.training.run_folder import saved_steps
from support import (
    alone,
    composed,
    equal,
    history_of,
    killed_after_saving,
    same_lines,
    saved_of,
)


def test_a_run_is_as_long_as_its_warm_up_and_its_updates():
    config = composed("schedule=warmup_cosine", "trainer.epochs=4", "optim.accumulate=8")
    check_lengths(config)
    check_lengths(config, 2)
    with pytest.raises(UserError, match=r"^optim.accumulate=8: the run has 4 steps"):
        check_lengths(config, 1)
    config["trainer"]["steps_per_epoch"] = 1
    with pytest.raises(UserError, match=r"^optim.accumulate=8: the run has 4 steps"):
        check_lengths(config)
    config["schedule"] |= {"warmup": 5, "unit": "epochs"}
    with pytest.raises(UserError, match=r"^schedule.warmup=5: the run has 4 epochs"):
        check_lengths(config)
    config["schedule"]["unit"] = "steps"
    with pytest.raises(UserError, match=r"^schedule.warmup=5: the run has 4 steps"):
        check_lengths(config)
    config["trainer"]["epochs"] = 1  # of one step, as by debug=fast
    check_lengths(config)


def test_a_length_in_steps_counts_in_the_place_of_epochs():
    config = composed("schedule=warmup_cosine", "trainer.steps=30", "optim.accumulate=8")
    check_lengths(config)  # nobody knows yet what an epoch is
    check_lengths(config, 10)
    with pytest.raises(
        UserError, match=r"^schedule.warmup=1.0: the run has 0.5 epochs; say trainer.steps="
    ):
        check_lengths(config, 60)
    config["trainer"]["steps"] = 4
    with pytest.raises(
        UserError, match=r"^optim.accumulate=8: the run has 4 steps; say trainer.steps="
    ):
        check_lengths(config, 1)


@pytest.mark.parametrize("said", ["trainer.epochs=3", "++trainer.epochs=3", "trainer.epochs"])
def test_epochs_that_would_make_no_difference_are_refused(said):
    check_said(["trainer.steps=null", said], {"trainer": {"steps": None}})
    check_said(["trainer.epochs_more=1"], {"trainer": {"steps": 100}})
    with pytest.raises(
        UserError, match=r"^trainer.epochs.*: the length of the run is trainer.steps=100"
    ):
        check_said(["model=mlp", said], {"trainer": {"steps": 100}})


def test_periods_end_at_their_multiples_and_with_the_run():
    periods = Periods(length=7, total=17, log_every=5)
    assert [step for step in range(1, 18) if periods.ends_line(step)] == [1, 5, 7, 10, 14, 15, 17]
    assert [periods.end(step) for step in (0, 6, 7, 13, 14, 16)] == [7, 7, 14, 14, 17, 17]
    assert [periods.number(step) for step in (1, 7, 8, 14, 17)] == [1, 1, 2, 2, 3]
    assert periods.evaluations == 3


def test_a_mean_is_of_the_steps_since_the_last_evaluation():
    metrics = Metrics(Periods(length=4, total=8, log_every=1), steps_per_epoch=4)
    for losses, mean in (([1, 2, 6], 3), ([10, 20], 15)):  # the first one where time ran out
        list(metrics.add({"loss": np.array([losses])}, len(losses), [None]))
        assert metrics.end_period() == [{"train/epoch_loss": mean}]


def test_evaluations_change_no_step_and_the_last_step_has_one(train):
    """Within epochs of 20 steps, and over several; the means are those of the steps."""
    options = ["trainer.log_every=1", "model.dropout=0.2"]
    _, by_epochs = train(*options, "trainer.epochs=3", folder="epochs")
    _, lines = train(*options, "trainer.steps=60", "trainer.eval_every=25", folder="steps")
    losses, others = (
        [line["train/loss"] for line in run if "train/loss" in line] for run in (by_epochs, lines)
    )
    assert losses == others
    evaluated = [line for line in lines if "val/loss" in line]
    assert [line["step"] for line in evaluated] == [25, 50, 60]
    means = [np.mean(losses[:25]), np.mean(losses[25:50]), np.mean(losses[50:])]
    assert [line["train/epoch_loss"] for line in evaluated] == pytest.approx(means, rel=1e-6)
    assert evaluated[-1]["val/loss"] == by_epochs[-2]["val/loss"]


@pytest.fixture
def lowering(trial, base):
    """A trial, of 17 steps in epochs of 5, whose learning rate is lowered after evaluations."""
    node = composed("schedule=reduce_on_plateau", "schedule.patience=0", "schedule.factor=0.5")
    schedule = node["schedule"] | {"threshold": 0.3, "warmup": 0.5}
    trainer = {"steps": 17, "eval_every": 4, "keep_best": 2, "monitor": "loss"}

    def make(rate, name, folder=None, **data):
        own = {"schedule": schedule, "data": copy.deepcopy(base["data"]) | data}
        return trial(rate, name, folder, trainer=trainer, **own)

    return make


def rates_of(trial):
    return [line["learning_rate"] for line in history_of(trial) if "val/loss" in line]


def check_kept(trial, summary, *, alone):
    """The best two evaluations have a checkpoint, and few others."""
    losses = {x["step"]: x["val/loss"] for x in history_of(trial) if "val/loss" in x}
    best = sorted(losses, key=lambda step: losses[step])[:2]
    assert [one["step"] for one in summary["kept"]] == best
    there = saved_steps(trial.directory)
    assert {*best} <= {*there} <= ({*best, *sorted(losses)[-2:]} if alone else {*losses})
    assert len(there) <= 4


STREAM = {"stream": True, "workers": 0}


@pytest.mark.parametrize("data", [{}, pytest.param(STREAM, marks=pytest.mark.slow)])
def test_a_killed_run_lowers_its_rate_and_keeps_its_best_as_if_it_were_not(
    lowering, tmp_path, monkeypatch, data
):
    whole, cut, again = (lowering(0.3, "run", tmp_path / where, **data) for where in "abb")
    summary = alone(whole)
    assert rates_of(whole)[0] == pytest.approx(0.3)
    assert len(set(rates_of(whole))) > 1
    check_kept(whole, summary, alone=True)
    with killed_after_saving(monkeypatch, step=summary["kept"][0]["step"]):
        alone(cut)
    check_kept(again, alone(again, resume=True), alone=True)
    same_lines(whole, again)
    equal(saved_of(whole), saved_of(again))


def test_beside_others_each_lowers_its_own_rate_and_keeps_its_own_best(
    lowering, tmp_path, monkeypatch
):
    values = (0.03, 0.3)
    many, cut, again = (
        [lowering(rate, f"{rate}", tmp_path / where) for rate in values] for where in "abb"
    )
    fit(many, tmp_path / "a/all", test=False)
    scales = [
        np.divide(rates_of(one), rate).tolist() for one, rate in zip(many, values, strict=True)
    ]
    assert scales[0] != scales[1] or scales[1] != scales[2]
    with killed_after_saving(monkeypatch, step=8):
        fit(cut, tmp_path / "b/all", test=False)
    summaries = fit(again, tmp_path / "b/all", test=False, resume=True)
    for one, other, summary in zip(many, again, summaries, strict=True):
        same_lines(one, other)
        equal(saved_of(one), saved_of(other))
        check_kept(other, summary, alone=False)


def test_patience_counts_evaluations_that_are_better_by_min_delta():
    values = [1.0, 0.95, 0.85, 0.86, 0.8, float("nan"), 0.6]
    best, stale, better = Best("loss", "min", 0.1, 0), [], []
    for step, value in enumerate(values):
        better.append(best.take(step, {"val/loss": value, "epoch": 0.5 * step}))
        stale.append(best.stale)
    assert stale == [0, 1, 0, 1, 2, 3, 0]
    assert better == [True, True, True, False, True, False, True]  # whose weights are tested
    with pytest.raises(UserError, match=r"trainer.min_delta=-0.1: must be at least 0"):
        check(composed("trainer.min_delta=-0.1"))


@pytest.mark.parametrize(
    ("mode", "steps"), [("max", [2, 1, 4]), ("min", [0, 5, 1]), ("last", [5, 4, 2])]
)
def test_the_best_evaluations_are_kept_the_earlier_one_of_equals(mode, steps):
    best = Best("accuracy", mode, 0.0, 3)
    for step, value in enumerate([0.1, 0.5, 0.9, float("nan"), 0.5, 0.3]):
        best.take(step, {"val/accuracy": value, "epoch": 0.5 * step})
    assert [one["step"] for one in best.best_k] == steps
    again = Best("accuracy", mode, 0.0, 2)
    again.restore(json.loads(json.dumps(best.progress())))
    assert [one["step"] for one in again.best_k] == steps[:2]


@pytest.mark.slow
def test_a_checkpoint_of_the_best_evaluates_to_what_was_measured(run_cli, tmp_path):
    run, short = tmp_path / "run", ["trainer.steps=50", "trainer.eval_every=10", "logger=none"]
    options = ["model.hidden=[8]", "trainer.keep_best=2", "trainer.figures=false"]
    assert run_cli(*options, *short, "optim.learning_rate=0.2", folder=run)[0] == 0
    kept = json.loads((run / "summary.json").read_text())["kept"]
    source = run / "checkpoints" / str(kept[1]["step"])
    code, error = run_cli("mode=evaluate", f"checkpoint={source}", "name=second")
    assert code == 0, error
    found = json.loads((run / "evaluations" / "second.json").read_text())
    assert found["val/accuracy"] == pytest.approx(kept[1]["val/accuracy"])
    code, error = run_cli(f"resume={run}", "trainer.epochs=9", folder=run)
    assert code == 2
    assert "trainer.epochs=9: the length of the run is trainer.steps=50" in error


def test_a_study_is_pruned_by_evaluation():
    class Stub:
        reported = frozenset({2})

        def __init__(self):
            self.optuna, self.seen, self.reason = self, [], None

        def report(self, value, number):
            self.seen.append((number, value))

        def should_prune(self):
            return len(self.seen) == 2

    stub, periods = Stub(), Periods(length=5, total=12, log_every=5)
    reporter = Reporter(stub, "val/accuracy", stub, periods)
    for step, value in ((5, 0.1), (10, 0.2), (12, 0.3)):  # the second before it was interrupted
        reporter.log(step, {"epoch": step / 20, "val/accuracy": value})
    assert (stub.seen, stub.reason) == ([(1, 0.1), (3, 0.3)], "pruned")


def test_python_refuses_epochs_beside_steps(data_home):
    with pytest.raises(UserError, match=r"the length of the run is trainer\.steps=10"):
        compose("trainer.steps=10", "trainer.epochs=3")


@pytest.mark.parametrize(
    ("trainer", "step", "words"),
    [
        ({"steps": None}, 23, "for 2.3 epochs: trainer.epochs= above 2.3"),
        ({"steps": 23}, 23, "for 23 steps: trainer.steps= above 23"),
    ],
)
def test_a_finished_run_says_from_where_on_it_would_be_longer(trainer, step, words):
    setup = SimpleNamespace(experiment=SimpleNamespace(steps_per_epoch=10))
    assert longer(SimpleNamespace(config={"trainer": trainer}, setup=setup), step) == words
