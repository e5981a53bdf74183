"""Trials side by side are as each would be by itself: the same numbers, folders and ends."""

import copy
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.machine import StopRequest
from experiments.tracking.jsonl import read_history
from experiments.tracking.tracker import Tracker
from experiments.training.checkpoints import load
from experiments.training.loop import fit
from experiments.training.setup import Setups
from experiments.training.step import Compiled
from experiments.training.trial import overview
from support import ROOT, composed, killed_after_saving, trial_of

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
TIMES = {"examples_per_second", "seconds", "training_seconds"}


class StopAfter(Tracker):
    """Asks a trial to stop once it has seen a step."""

    may_stop = True

    def __init__(self, stop, step, status):
        self.stop, self.step, self.stop.status = stop, step, status

    def log(self, step, scalars):
        if step >= self.step:
            self.stop.name = "SIGTERM"


class ModelRegistry(Tracker):
    """Takes the checkpoint of a finished run."""

    takes_model = True

    def model(self, path):
        self.steps = sorted(int(step.name) for step in path.iterdir())


@pytest.fixture(scope="module")
def base(data_home):
    return composed(
        *data_home,
        "model.hidden=[16]",
        "model.dropout=0.1",
        "data.batch_size=256",
        "trainer.epochs=4",
        "trainer.log_every=2",
        "trainer.figures=false",
        "trainer.checkpoint_every=null",
        'trainer.compilation_cache=""',
        "logger=none",
    )


@pytest.fixture(scope="module")
def setups():
    return Setups()


@pytest.fixture
def trial(base, setups, tmp_path):
    """A trial at a learning rate; `stop` is (step, status), `trainer` changes some keys."""

    def make(rate, name, folder=None, stop=None, trainer=None, **values):
        config = copy.deepcopy(base) | values
        config["optim"]["learning_rate"] = rate
        config["trainer"] |= trainer or {}
        config["name"] = name
        request = StopRequest()
        watching = [] if stop is None else [StopAfter(request, *stop)]
        directory = (folder or tmp_path) / name
        return trial_of(config, directory, *watching, stop=request, setups=setups)

    return make


def alone(trial, **options):
    (summary,) = fit([trial], trial.directory, test=False, **options)
    return summary


def weights(trial):
    """(state, best weights) as saved."""
    shapes = trial.setup.shapes
    (saved,) = load([trial.directory], [(shapes, trial.setup.experiment.weights(shapes))])
    return saved.state, saved.best


def history(trial):
    return read_history(trial.directory / "metrics.jsonl")


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def same_lines(a, b):
    """But for their times."""
    for one, other in zip(history(a), history(b), strict=True):
        timeless = [{k: v for k, v in x.items() if "second" not in k} for x in (one, other)]
        assert timeless[0].keys() == timeless[1].keys()
        for name, value in timeless[0].items():
            assert timeless[1][name] == pytest.approx(value, rel=1e-6)


@pytest.mark.core
def test_trial_i_of_many_equals_the_same_trial_alone(trial, tmp_path):
    """Weights, and every line of metrics at the same steps; dropout draws the same keys."""
    many = [trial(rate, f"many{i}") for i, rate in enumerate(RATES)]
    summaries = fit(many, tmp_path / "all", test=False)
    for i, rate in enumerate(RATES):
        single = trial(rate, f"alone{i}")
        summary = alone(single)
        close(weights(many[i]), weights(single), rtol=1e-3, atol=1e-5)
        mine, own = history(many[i]), history(single)
        assert [set(line) for line in mine] == [set(line) for line in own]
        for name in ("step", "train/loss", "val/loss", "val/accuracy", "grad_norm"):
            pick = [[line[name] for line in lines if name in line] for lines in (mine, own)]
            np.testing.assert_allclose(*pick, rtol=2e-3)
        assert summaries[i]["status"] == summary["status"] == "finished"
        assert set(summaries[i]) == set(summary)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["model=vae", "model.hidden=[16]"], marks=pytest.mark.slow),
        pytest.param(["model=gan", "model.hidden=[16]"], marks=pytest.mark.slow),
        ["model=lstm", "model.hidden=8", "data=digits_rows"],
        pytest.param(
            ["model=mlp", "model.hidden=[8]", "optim=momentum", "optim.accumulate=2"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["model=mlp", "model.hidden=[8,8]", "model.norm=batch", "model.dropout=0.1"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["model=mlp", "model.hidden=[8,8]", "model.norm=layer"], marks=pytest.mark.slow
        ),
        pytest.param(
            [
                "model=lenet5",
                "freeze=[conv1]",
                "data.augment.crop_padding=1",
                "optim.ema_decay=0.9",
            ],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["vae", "gan", "lstm", "accumulate", "batch_norm", "layer_norm", "freeze"],
)
def test_every_kind_of_training_is_the_same_beside_another(data_home, tmp_path, overrides):
    """Trial by trial in one program each step has the bits of a trial alone."""
    common = [*data_home[1:], "data.limit=256", "trainer.epochs=2", "trainer.figures=false"]
    config = composed(*common, *overrides, 'trainer.compilation_cache=""', "logger=none")
    setups, trials = Setups(), []
    for seed in (0, 1):
        own = {**config, "seed": seed, "trainer": config["trainer"] | {"shuffle_seed": 0}}
        trials.append([trial_of(own, tmp_path / f"{n}{seed}", setups=setups) for n in "ab"])
    fit([first for first, _ in trials], tmp_path / "all", test=False, width=1)
    alone(trials[1][1])
    equal(weights(trials[1][0]), weights(trials[1][1]))
    same_lines(*trials[1])


def test_seeds_are_replicates_with_their_own_or_a_shared_order(trial, tmp_path):
    own = [trial(1e-2, f"own{seed}", seed=seed) for seed in (0, 1)]
    one = {"shuffle_seed": 0}
    shared = [trial(1e-2, f"shared{seed}", seed=seed, trainer=one) for seed in (0, 1)]
    for group, trainer in ((own, None), (shared, one)):
        name = group[1].directory.name
        fit(group, tmp_path / f"{name}s", test=False)
        single = trial(1e-2, f"alone_{name}", seed=1, trainer=trainer)
        alone(single)
        close(weights(group[1]), weights(single), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_trials_on_streams_of_different_orders_are_trained_one_after_another(trial, base, tmp_path):
    data = base["data"] | {"stream": True, "workers": 0, "limit": 512}
    trials = [trial(1e-2, f"own{seed}", seed=seed, data=data) for seed in (0, 1)]
    fit(trials, tmp_path / "all", test=False)
    single = trial(1e-2, "alone", seed=1, data=data)
    alone(single)
    equal(weights(trials[1]), weights(single))


def test_a_tracker_that_takes_models_gets_one_of_each_trial(trial, base, setups, tmp_path):
    registry, first = ModelRegistry(), trial(RATES[0], "one")
    config = base | {"name": "two"}
    taken = trial_of(config, tmp_path / "two", registry, setups=setups)
    fit([first, taken], tmp_path / "all", test=False)
    assert registry.steps == [setups.of(config).experiment.total_steps]
    assert not (first.directory / "checkpoints").exists()
    (tmp_path / "two" / "population.json").unlink()  # its own is whole without the others
    state, _ = weights(taken)
    assert state.step == registry.steps[0]


def test_an_overview_has_the_best_of_the_trials_under_way(trial, tmp_path):
    seen = []
    trials = [trial(rate, f"trial{rate}") for rate in RATES]
    shown = lambda trials, step: seen.append(overview(trials, step))  # noqa: E731
    fit(trials, tmp_path / "all", test=False, shown=shown)
    total = trials[0].setup.experiment.total_steps
    assert [line["step"] for line in seen] == sorted(line["step"] for line in seen)
    assert (seen[-1]["step"], seen[-1]["total_steps"], seen[-1]["trials"]) == (total, total, 4)
    before_last = [
        max(x["val/accuracy"] for x in history(t)[:-1] if "val/accuracy" in x) for t in trials
    ]
    assert seen[-1]["val/accuracy"] == max(before_last)


@pytest.mark.parametrize("width", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_trial_that_diverges_is_frozen_and_touches_no_other(trial, tmp_path, width):
    good = [trial(rate, f"good{i}", tmp_path / "a") for i, rate in enumerate(RATES)]
    fit(good, tmp_path / "a/all", width=width, test=False)
    rates = (RATES[0], 1e30, *RATES[2:])
    mixed = [trial(rate, f"good{i}", tmp_path / "b") for i, rate in enumerate(rates)]
    bad = fit(mixed, tmp_path / "b/all", width=width, test=False)[1]
    assert bad["status"] == "diverged"
    assert history(mixed[1])[-1]["step"] == bad["diverged_at"] == bad["step"] < 20
    for i in (0, 2, 3):
        equal(weights(good[i]), weights(mixed[i]))


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
    close(weights(trials[6]), weights(single), rtol=1e-3, atol=1e-5)


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


def test_at_most_so_many_at_once_gives_the_same_results(trial, tmp_path):
    whole = [trial(rate, f"w{i}") for i, rate in enumerate(RATES)]
    parts = [trial(rate, f"p{i}") for i, rate in enumerate(RATES)]
    fit(whole, tmp_path / "whole", test=False)
    fit(parts, tmp_path / "parts", most=2, test=False)
    for a, b in zip(whole, parts, strict=True):
        close(weights(a), weights(b), rtol=1e-4, atol=1e-6)


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
        equal(weights(a), weights(b))
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
        equal(weights(a), weights(b))
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
    close(weights(longer), weights(single), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_each_trial_keeps_epochs_profile_and_figures_like_a_run_alone(run_cli, tmp_path, data_home):
    """And each can be evaluated, predicted with, exported, drawn and trained on from."""
    study = tmp_path / "study"
    code, error = run_cli(
        *("-m", "seed=0,1,2", f"study={study}", "model.hidden=[16]", "logger=none"),
        *("trainer.epochs=4", "trainer.keep_every=2", "trainer.figures=true"),
        *("trainer.profile_steps=2", "side_by_side=auto"),
    )
    assert code == 0, error
    assert list(study.rglob("*.xplane.pb"))
    for number in range(3):
        run = study / "trials" / str(number)
        assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["40", "80"]
        assert (run / "figures" / "confusion_matrix.png").is_file()
        for mode in ("evaluate", "predict", "export", "figures"):
            out = tmp_path / f"{mode}{number}"
            code, error = run_cli(f"mode={mode}", f"checkpoint={run}", folder=out)
            assert code == 0, error
    lines = (tmp_path / "predict0" / "predictions.csv").read_text().splitlines()
    assert len(lines) == 1 + 144 + 360
    kept = study / "trials" / "1" / "checkpoints" / "40"
    code, error = run_cli("mode=evaluate", f"checkpoint={kept}", folder=tmp_path / "kept")
    assert code == 0, error
    options = ["model.hidden=[16]", "trainer.epochs=1", "logger=none", "trainer.figures=false"]
    code, error = run_cli(*options, f"model.pretrained={study / 'trials' / '1'}")
    assert code == 0, error
    assert "loaded 4 of 4 arrays" in error


def test_pretrained_weights_are_where_each_of_many_starts(trial, base, tmp_path):
    source = trial(1e-2, "source")
    alone(source)
    (source.directory / ".hydra").mkdir()
    (source.directory / ".hydra" / "config.yaml").touch()
    model = base["model"] | {"pretrained": str(source.directory)}
    many = [trial(1e-9, f"many{seed}", seed=seed, model=model) for seed in (0, 1)]
    fit(many, tmp_path / "all", test=False)
    for one in many:
        close(weights(one)[0].params, weights(source)[1][0], atol=1e-5)


def test_one_compilation_serves_later_trials(trial, tmp_path, monkeypatch):
    traced = []
    original = jax.stages.Lowered.compile

    def counted(self, *arguments, **options):
        traced.append(self)
        return original(self, *arguments, **options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", counted)
    for part, expected in (("a", 3), ("b", 0)):  # the beginning, training and evaluation
        trials = [trial(2 * rate, f"{part}{i}") for i, rate in enumerate(RATES[:3])]
        fit(trials, tmp_path / part, width=3, test=False)
        assert len(traced) == expected
        traced.clear()


@pytest.mark.slow
def test_a_step_is_traced_once_for_all_programs(base, tmp_path, monkeypatch):
    from experiments.core.experiment import Experiment

    traced, step = [], Experiment.train_step
    monkeypatch.setattr(
        Experiment, "train_step", lambda self, *a, **k: traced.append(1) or step(self, *a, **k)
    )
    setups = Setups()
    fit([trial_of(base, tmp_path / "alone", setups=setups)], tmp_path, test=False)
    pair = [trial_of(base | {"seed": s}, tmp_path / f"{s}", setups=setups) for s in (0, 1)]
    fit(pair, tmp_path / "pair", test=False)
    assert len(traced) == 1


def test_what_cannot_be_traced_sets_trials_apart(trial, base):
    """The exponent of a polynomial schedule can be traced, the width of a layer cannot."""
    narrow = trial(1e-3, "narrow", model={**base["model"], "hidden": [8]})
    wide, brisk = trial(1e-3, "wide"), trial(1e-2, "brisk")
    assert wide.setup is brisk.setup is not narrow.setup
    assert json.loads(wide.setup.static_key)["optim"]["learning_rate"] == "an input"


def spread(trials, folder, kind, leave=None):
    """The same trials trained on several devices, and what the process that did it printed."""
    given = folder / "given.json"
    given.write_text(json.dumps({"configs": [t.config for t in trials], "leave": leave}))
    script = Path(__file__).with_name("spread.py")
    dump = f"--xla_dump_to={folder}/programs --xla_dump_hlo_as_text"
    flags = dump if kind == "cores" else "--xla_force_host_platform_device_count=8"
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, str(script), str(given), str(folder / "spread"), kind],
        env=environment,
        check=True,
        timeout=300,
        stdout=subprocess.PIPE,
        text=True,
    )
    found = [copy.copy(trial) for trial in trials]
    for trial in found:
        trial.directory = folder / "spread" / trial.directory.name
    return found, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def three(trial, tmp_path):
    """Trials trained on one device, of which two leave after ten steps."""
    trials = [trial(rate, f"{i}", stop=(10, "pruned")) for i, rate in enumerate(RATES[:2])]
    trials.append(trial(RATES[2], "2"))
    fit(trials, tmp_path / "all", test=False)
    return trials


@pytest.mark.slow
def test_trials_are_spread_over_devices(three, tmp_path, data_home):
    """Devices with a trial each give the weights of one device; the last trial has all of them."""
    found, sizes = spread(three, tmp_path, "simulated", leave=10)
    assert sizes == [[3, 3], [8, 1]]
    for there, trial in zip(found, three, strict=True):
        close(weights(there), weights(trial), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_each_core_trains_trials_of_its_own(three, tmp_path, data_home):
    """The weights of one device, from data held once; the last trial has all cores for itself.

    No core waits for another within a program, which can be for ever.
    """
    found, sizes = spread(three, tmp_path, "cores", leave=10)
    assert sizes == [[2, 4], [1, 1]]
    programs = list((tmp_path / "programs").glob("*after_optimizations.txt"))
    assert any("num_partitions=2" in program.read_text() for program in programs)
    waits = re.compile(r"(all-|collective-|reduce-scatter)[\w-]*\(")
    assert not [program.name for program in programs if waits.search(program.read_text())]
    for there, trial in zip(found, three, strict=True):
        close(weights(there), weights(trial), rtol=1e-3, atol=1e-5)
