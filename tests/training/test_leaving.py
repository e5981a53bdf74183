"""Trials side by side that end before others, or stop together, are as each would be by itself."""

import dataclasses
import re

import pytest

from experiments.training.loop import fit
from experiments.training.step import Compiled
from support import (
    RATES,
    alone,
    close,
    equal,
    history_of,
    killed_after_saving,
    same_lines,
    saved_of,
)


@pytest.mark.parametrize("width", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_trial_that_diverges_is_frozen_and_touches_no_other(trial, tmp_path, width):
    good = [trial(rate, f"good{i}", tmp_path / "a") for i, rate in enumerate(RATES)]
    fit(good, tmp_path / "a/all", width=width, test=False)
    rates = (RATES[0], 1e30, *RATES[2:])
    mixed = [trial(rate, f"good{i}", tmp_path / "b") for i, rate in enumerate(rates)]
    bad = fit(mixed, tmp_path / "b/all", width=width, test=False)[1]
    assert bad["status"] == "diverged"
    assert history_of(mixed[1])[-1]["step"] == bad["diverged_at"] == bad["step"] < 20
    for i in (0, 2, 3):
        equal(saved_of(good[i]), saved_of(mixed[i]))


@pytest.mark.slow
def test_a_diverged_trial_names_the_operation_behind_it(trial, tmp_path, caplog):
    trainer = {"debug_nans": True}
    trials = [trial(rate, f"{rate:g}", trainer=trainer) for rate in (1e-3, 1e30)]
    fit(trials, tmp_path / "all", test=False)
    assert "1e+30: loss or gradient is not finite at step" in caplog.text
    assert re.search(r"1e\+30: it comes from \S+", caplog.text)


@pytest.mark.slow
def test_trials_that_stop_leave_and_the_stack_shrinks(trial, tmp_path, monkeypatch):
    """Half of the trials leave after the first epoch; the others end as if nothing had been."""
    sizes, prepare = [], Compiled.prepare

    def noted(self, *, training=True):
        sizes.append(self.layout.rows)
        prepare(self, training=training)

    monkeypatch.setattr(Compiled, "prepare", noted)
    rates = [*RATES, *(2 * rate for rate in RATES)]
    stops = [(1, "pruned") if i % 2 else None for i in range(8)]
    trials = [trial(r, f"{i}", stop=s) for i, (r, s) in enumerate(zip(rates, stops, strict=True))]
    summaries = fit(trials, tmp_path / "all", width=8, test=False)
    assert [s["status"] for s in summaries] == ["finished", "pruned"] * 4
    assert summaries[1]["step"] * 4 == summaries[0]["step"]
    assert list(dict.fromkeys(sizes)) == [8, 4]
    single = trial(rates[6], "alone")
    alone(single)
    close(saved_of(trials[6]), saved_of(single), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_patience_ends_each_trial_at_its_own_epoch(trial, tmp_path):
    trainer = {"patience": 1, "epochs": 12}
    rates = (1e-4, 1e-1, 3e-2)
    many = [trial(rate, f"many{rate:g}", trainer=trainer) for rate in rates]
    summaries = fit(many, tmp_path / "all", test=False)
    ends = {summary["step"] for summary in summaries}
    assert len(ends) > 1
    for rate, summary in zip(rates, summaries, strict=True):
        single = alone(trial(rate, f"alone{rate:g}", trainer=trainer))
        assert (single["step"], single["status"]) == (summary["step"], summary["status"])


@pytest.mark.slow
def test_time_runs_out_within_an_epoch(trial, tmp_path):
    trainer = {"max_time": 0.5, "max_steps_per_dispatch": 1}
    data = {"batch_size": 1}
    base = trial(1e-3, "base").config["data"]
    many = [trial(rate, f"{rate}", trainer=trainer, data=base | data) for rate in RATES]
    summaries = fit(many, tmp_path / "all", test=False, width=4)
    assert {summary["status"] for summary in summaries} == {"stopped_early"}
    assert {summary["step"] < 1293 for summary in summaries} == {True}  # steps of an epoch
    assert all("val/loss" in summary for summary in summaries)


@pytest.mark.core
def test_trials_that_were_stopped_resume_whole(trial, tmp_path):
    """In the middle of an epoch; then no line is missing or written twice."""
    plain = [trial(rate, f"{i}", tmp_path / "a") for i, rate in enumerate(RATES)]
    fit(plain, tmp_path / "a/all", test=False)
    first = [trial(r, f"{i}", tmp_path / "b", (7, "interrupted")) for i, r in enumerate(RATES)]
    summaries = fit(first, tmp_path / "b/all", test=False)
    assert {s["status"] for s in summaries} == {"interrupted"}
    again = [trial(rate, f"{i}", tmp_path / "b") for i, rate in enumerate(RATES)]
    summaries = fit(again, tmp_path / "b/all", test=False, resume=True)
    assert {s["status"] for s in summaries} == {"finished"}
    for a, b in zip(plain, again, strict=True):
        equal(saved_of(a), saved_of(b))
        same_lines(a, b)


@pytest.mark.slow
def test_trials_that_were_killed_between_epochs_go_on(trial, tmp_path, monkeypatch):
    """A checkpoint of the end of an epoch holds its validation too."""
    often = {"checkpoint_every": 0}
    plain, first, again = (
        [trial(rate, f"{i}", tmp_path / where, trainer=often) for i, rate in enumerate(RATES)]
        for where in "abb"
    )
    fit(plain, tmp_path / "a/all", test=False)
    with killed_after_saving(monkeypatch, step=10):
        fit(first, tmp_path / "b/all", test=False)
    fit(again, tmp_path / "b/all", test=False, resume=True)
    for a, b in zip(plain, again, strict=True):
        equal(saved_of(a), saved_of(b))
        same_lines(a, b)


def test_a_trial_goes_on_alone_and_says_when_its_data_have_changed(
    trial, tmp_path, monkeypatch, caplog
):
    trials = [trial(rate, f"{i}") for i, rate in enumerate(RATES)]
    fit(trials, tmp_path / "all", test=False)
    longer = trial(RATES[1], "1", trainer={"epochs": 6})
    changed = dataclasses.replace(longer.setup.splits, fingerprint="another")
    monkeypatch.setattr(longer.setup, "splits", changed)
    assert alone(longer, resume=True)["step"] == 6 * 5
    assert "the data on disk have changed since it was saved" in caplog.text
    single = trial(RATES[1], "alone", trainer={"epochs": 6})
    alone(single)
    close(saved_of(longer), saved_of(single), rtol=1e-3, atol=1e-5)
