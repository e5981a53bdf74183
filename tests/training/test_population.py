"""A population is its solo runs: the same numbers, folders and ends, from one program."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.tracking.jsonl import JsonLines, read_history
from experiments.tracking.tracker import Tracker, Trackers
from experiments.training import loop, stored
from experiments.training import population_shared as shared
from experiments.training.kept import Kept
from experiments.training.population_fit import fit_together, open_lane
from experiments.training.population_lane import Member
from experiments.training.session import open_session
from experiments.training.signals import StopRequest
from support import composed, killed_after_saving

RATES = (1e-3, 3e-3, 1e-2, 3e-2)


class StopAfter(Tracker):
    """Asks a run to stop once it has seen a step."""

    may_stop = True

    def __init__(self, stop, step, status):
        self.stop, self.step, self.stop.status = stop, step, status

    def log(self, step, scalars):
        if step >= self.step:
            self.stop.name = "SIGTERM"


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
def kept():
    return Kept()


@pytest.fixture
def member(base, kept, tmp_path):
    """A member that trains at a learning rate; `stop` is (step, status)."""

    def make(rate, name, folder=None, stop=None, **values):
        config = copy.deepcopy(base) | values
        config["optim"]["learning_rate"] = rate
        config["name"] = name
        directory = (folder or tmp_path) / name
        directory.mkdir(parents=True, exist_ok=True)
        request = StopRequest()
        watching = [] if stop is None else [StopAfter(request, *stop)]
        trackers = Trackers([JsonLines(), *watching])
        return Member(open_lane(config, kept), directory, trackers, request)

    return make


def solo(member, **options):
    session = open_session(member.session.config, member.session.kept)
    return loop.fit(session, member.directory, member.trackers, member.stop, test=False, **options)


def weights(member):
    """(state, best weights) as saved."""
    core, hparams = member.session.experiment, member.session.hparams
    shapes = core.abstract_state(hparams)
    return stored.load([member.directory], shapes, core.weights(shapes))[0][:2]


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.core
def test_lane_i_equals_solo_run_i(member, tmp_path):
    """Weights, and every line of metrics at the same steps; dropout draws the same keys."""
    lanes = [member(rate, f"lane{i}") for i, rate in enumerate(RATES)]
    summaries = fit_together(lanes, tmp_path / "all", test=False)
    for i, rate in enumerate(RATES):
        alone = member(rate, f"solo{i}")
        summary = solo(alone)
        close(weights(lanes[i]), weights(alone), rtol=1e-3, atol=1e-5)
        mine, own = (read_history(m.directory / "metrics.jsonl") for m in (lanes[i], alone))
        assert [set(line) for line in mine] == [set(line) for line in own]
        for name in (
            "step",
            "train/loss",
            "val/loss",
            "val/accuracy",
            "grad_norm",
            "learning_rate",
        ):
            pick = [[line[name] for line in lines if name in line] for lines in (mine, own)]
            np.testing.assert_allclose(*pick, rtol=2e-3)
        assert summaries[i]["status"] == summary["status"] == "finished"
        assert set(summaries[i]) == set(summary)


def test_seeds_are_replicates_with_their_own_or_a_shared_order(member, base, tmp_path):
    own = [member(1e-2, f"own{seed}", seed=seed) for seed in (0, 1)]
    trainer = {**base["trainer"], "shuffle_seed": 0}
    shared = [member(1e-2, f"shared{seed}", seed=seed, trainer=trainer) for seed in (0, 1)]
    for group in (own, shared):
        fit_together(group, tmp_path / group[0].directory.name / "all", test=False)
        alone = member(1e-2, "alone" + group[1].directory.name, **_values(group[1]))
        solo(alone)
        close(weights(group[1]), weights(alone), rtol=1e-3, atol=1e-5)


def _values(of):
    return {name: of.session.config[name] for name in ("seed", "trainer")}


@pytest.mark.parametrize("width", [1, 4])
def test_a_lane_that_diverges_is_frozen_and_touches_no_other(member, tmp_path, width):
    good = [member(rate, f"good{i}", tmp_path / "a") for i, rate in enumerate(RATES)]
    fit_together(good, tmp_path / "a/all", width=width, test=False)
    rates = (RATES[0], 1e30, *RATES[2:])
    mixed = [member(rate, f"good{i}", tmp_path / "b") for i, rate in enumerate(rates)]
    bad, *_ = fit_together(mixed, tmp_path / "b/all", width=width, test=False)[1:]
    assert bad["status"] == "diverged"
    history = read_history(mixed[1].directory / "metrics.jsonl")
    assert history[-1]["step"] == bad["diverged_at"] == bad["step"] < 20
    for i in (0, 2, 3):
        equal(weights(good[i]), weights(mixed[i]))


def test_lanes_that_stop_leave_and_the_stack_shrinks(member, tmp_path, monkeypatch):
    """Half of the lanes leave after the first epoch; the others end as if nothing had been."""
    sizes, compiled = [], shared.Shared.compiled

    def noted(self, rows, *rest):
        sizes.append(rows)
        return compiled(self, rows, *rest)

    monkeypatch.setattr(shared.Shared, "compiled", noted)
    rates = [*RATES, *(2 * rate for rate in RATES)]
    stops = [(1, "pruned") if i % 2 else None for i in range(8)]
    lanes = [
        member(r, f"lane{i}", stop=s) for i, (r, s) in enumerate(zip(rates, stops, strict=True))
    ]
    summaries = fit_together(lanes, tmp_path / "all", width=8, test=False)
    assert [s["status"] for s in summaries] == ["finished", "pruned"] * 4
    assert summaries[1]["step"] * 4 == summaries[0]["step"]
    assert sizes == [8, 4]
    alone = member(rates[6], "alone")
    solo(alone)
    close(weights(lanes[6]), weights(alone), rtol=1e-3, atol=1e-5)


def test_chunks_do_not_change_results(member, tmp_path):
    whole = [member(rate, f"w{i}") for i, rate in enumerate(RATES)]
    parts = [member(rate, f"p{i}") for i, rate in enumerate(RATES)]
    fit_together(whole, tmp_path / "whole", test=False)
    fit_together(parts, tmp_path / "parts", most=2, test=False)
    for a, b in zip(whole, parts, strict=True):
        close(weights(a), weights(b), rtol=1e-4, atol=1e-6)


@pytest.mark.core
def test_a_population_that_was_stopped_resumes_whole(member, tmp_path):
    """In the middle of an epoch; then no line is missing or written twice."""
    plain = [member(rate, f"lane{i}", tmp_path / "a") for i, rate in enumerate(RATES)]
    fit_together(plain, tmp_path / "a/all", test=False)
    first = [member(r, f"lane{i}", tmp_path / "b", (7, "interrupted")) for i, r in enumerate(RATES)]
    summaries = fit_together(first, tmp_path / "b/all", test=False)
    assert {s["status"] for s in summaries} == {"interrupted"}
    again = [member(rate, f"lane{i}", tmp_path / "b") for i, rate in enumerate(RATES)]
    summaries = fit_together(again, tmp_path / "b/all", test=False)
    assert {s["status"] for s in summaries} == {"finished"}
    for a, b in zip(plain, again, strict=True):
        equal(weights(a), weights(b))
        same_lines(a, b)


def test_a_population_that_was_killed_between_epochs_goes_on(member, base, tmp_path, monkeypatch):
    """What was saved at the end of an epoch holds its validation too."""
    often = {"trainer": base["trainer"] | {"checkpoint_every": 0}}
    plain = [member(rate, f"lane{i}", tmp_path / "a", **often) for i, rate in enumerate(RATES)]
    fit_together(plain, tmp_path / "a/all", test=False)
    first = [member(rate, f"lane{i}", tmp_path / "b", **often) for i, rate in enumerate(RATES)]
    with killed_after_saving(monkeypatch, step=10):
        fit_together(first, tmp_path / "b/all", test=False)
    again = [member(rate, f"lane{i}", tmp_path / "b", **often) for i, rate in enumerate(RATES)]
    fit_together(again, tmp_path / "b/all", test=False)
    for a, b in zip(plain, again, strict=True):
        equal(weights(a), weights(b))
        same_lines(a, b)


def same_lines(a, b):
    """But for their times."""
    for one, other in zip(
        *(read_history(m.directory / "metrics.jsonl") for m in (a, b)), strict=True
    ):
        timeless = [{k: v for k, v in x.items() if "second" not in k} for x in (one, other)]
        assert timeless[0].keys() == timeless[1].keys()
        for name, value in timeless[0].items():
            assert timeless[1][name] == pytest.approx(value, rel=1e-6)


def test_a_lane_goes_on_alone(member, tmp_path, base):
    lanes = [member(rate, f"lane{i}") for i, rate in enumerate(RATES)]
    fit_together(lanes, tmp_path / "all", test=False)
    trainer = {**base["trainer"], "epochs": 6}
    longer = member(RATES[1], "lane1", trainer=trainer)
    assert solo(longer, resume=True)["step"] == 6 * 5
    alone = member(RATES[1], "alone", trainer=trainer)
    solo(alone)
    close(weights(longer), weights(alone), rtol=1e-3, atol=1e-5)


def test_one_compilation_serves_later_populations(member, tmp_path, monkeypatch):
    compiled = []
    choose = shared.choose_width

    def counted(programs, states, inputs, *rest):
        compiled.append(inputs[2].shape[0])
        return choose(programs, states, inputs, *rest)

    monkeypatch.setattr(shared, "choose_width", counted)
    for part in ("a", "b"):
        lanes = [member(2 * rate, f"{part}{i}") for i, rate in enumerate(RATES[:3])]
        fit_together(lanes, tmp_path / part, width=3, test=False)
        shutil.rmtree(tmp_path / part)
    assert compiled == [3]


def test_a_run_by_itself_may_come_first(base, tmp_path):
    """What it leaves to later runs of its process is not all that a population needs."""
    own = Kept()

    def opened(name):
        config = copy.deepcopy(base) | {"name": name}
        (tmp_path / name).mkdir()
        return Member(open_lane(config, own), tmp_path / name, Trackers([]), StopRequest())

    config = copy.deepcopy(base) | {"name": "first"}
    first = Member(open_session(config, own), tmp_path / "first", Trackers([]), StopRequest())
    first.directory.mkdir()
    solo(first)
    lanes = [opened("a"), opened("b")]
    fit_together(lanes, tmp_path / "all", test=False)
    close(weights(lanes[1]), weights(first), rtol=1e-3, atol=1e-5)


def test_what_cannot_be_traced_sets_trials_apart(member, base, kept, caplog):
    """The exponent of a polynomial schedule can be traced, the width of a layer cannot."""
    narrow = member(1e-3, "narrow", model={**base["model"], "hidden": [8]})
    wide, brisk = member(1e-3, "wide"), member(1e-2, "brisk")
    assert wide.session.static == brisk.session.static != narrow.session.static
    assert json.loads(wide.session.static)["optim"]["learning_rate"] is None


def spread(lanes, folder, kind, leave=None):
    """The same lanes trained on several devices, and what the process that did it printed."""
    told = folder / "told.json"
    told.write_text(json.dumps({"configs": [m.session.config for m in lanes], "leave": leave}))
    script = Path(__file__).with_name("spread.py")
    dump = f"--xla_dump_to={folder}/programs --xla_dump_hlo_as_text"
    flags = dump if kind == "cores" else "--xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, str(script), str(told), str(folder / "spread"), kind],
        env=environment,
        check=True,
        timeout=300,
        stdout=subprocess.PIPE,
        text=True,
    )
    there = [folder / "spread" / lane.directory.name for lane in lanes]
    found = [
        Member(m.session, where, m.trackers, m.stop) for m, where in zip(lanes, there, strict=True)
    ]
    return found, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def three(member, tmp_path):
    """Lanes trained on one device, of which two leave after ten steps."""
    lanes = [member(rate, f"lane{i}", stop=(10, "pruned")) for i, rate in enumerate(RATES[:2])]
    lanes.append(member(RATES[2], "lane2"))
    fit_together(lanes, tmp_path / "all", test=False)
    return lanes


@pytest.mark.slow
def test_lanes_are_spread_over_devices(three, tmp_path, data_home):
    """Devices with a lane each give the weights of one device, and so does the last one alone."""
    found, said = spread(three, tmp_path, "simulated", leave=10)
    assert said == {"sizes": [[3, 3], [1, 1]], "alone": 8}
    for there, lane in zip(found, three, strict=True):
        close(weights(there), weights(lane), rtol=1e-3, atol=1e-5)


def test_each_core_trains_lanes_of_its_own(three, tmp_path, data_home):
    """The weights of one device, from data held once; the last lane has all cores for itself.

    No core waits for another within a program, which can be for ever.
    """
    found, said = spread(three, tmp_path, "cores", leave=10)
    assert said == {"sizes": [[2, 4], [1, 1]], "alone": 1}
    programs = list((tmp_path / "programs").glob("*after_optimizations.txt"))
    assert any("num_partitions=2" in program.read_text() for program in programs)
    waits = re.compile(r"(all-|collective-|reduce-scatter)[\w-]*\(")
    assert not [program.name for program in programs if waits.search(program.read_text())]
    for there, lane in zip(found, three, strict=True):
        close(weights(there), weights(lane), rtol=1e-3, atol=1e-5)
