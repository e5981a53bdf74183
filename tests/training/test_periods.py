"""Runs counted in steps, evaluated every so many, and what follows from these evaluations."""

import numpy as np
import pytest

from experiments.cli.python import compose
from experiments.errors import UserError
from experiments.search.worker import Reporter
from experiments.training.metrics import Metrics, Periods
from experiments.training.options import check_lengths, check_said
from support import (
    composed,
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
