"""Trials side by side are as each would be by itself: the same numbers, folders and files."""

import numpy as np
import pytest

from experiments.tracking.tracker import Tracker
from experiments.training.loop import fit
from experiments.training.setup import Setups
from experiments.training.trial import overview
from support import RATES, alone, close, composed, equal, history_of, same_lines, saved_of, trial_of


class ModelRegistry(Tracker):
    """Takes the checkpoint of a finished run."""

    takes_model = True

    def model(self, path):
        self.steps = sorted(int(step.name) for step in path.iterdir())


@pytest.mark.core
def test_trial_i_of_many_equals_the_same_trial_alone(trial, tmp_path):
    """Weights, and every line of metrics at the same steps; dropout draws the same keys."""
    many = [trial(rate, f"many{i}") for i, rate in enumerate(RATES)]
    summaries = fit(many, tmp_path / "all", test=False)
    for i, rate in enumerate(RATES):
        single = trial(rate, f"alone{i}")
        summary = alone(single)
        close(saved_of(many[i]), saved_of(single), rtol=1e-3, atol=1e-5)
        mine, own = history_of(many[i]), history_of(single)
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
    equal(saved_of(trials[1][0]), saved_of(trials[1][1]))
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
        close(saved_of(group[1]), saved_of(single), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_trials_on_streams_of_different_orders_are_trained_one_after_another(trial, base, tmp_path):
    data = base["data"] | {"stream": True, "workers": 0, "limit": 512}
    trials = [trial(1e-2, f"own{seed}", seed=seed, data=data) for seed in (0, 1)]
    fit(trials, tmp_path / "all", test=False)
    single = trial(1e-2, "alone", seed=1, data=data)
    alone(single)
    equal(saved_of(trials[1]), saved_of(single))


def test_at_most_so_many_at_once_gives_the_same_results(trial, tmp_path):
    whole = [trial(rate, f"w{i}") for i, rate in enumerate(RATES)]
    parts = [trial(rate, f"p{i}") for i, rate in enumerate(RATES)]
    fit(whole, tmp_path / "whole", test=False)
    fit(parts, tmp_path / "parts", most=2, test=False)
    for a, b in zip(whole, parts, strict=True):
        close(saved_of(a), saved_of(b), rtol=1e-4, atol=1e-6)


def test_pretrained_weights_are_where_each_of_many_starts(trial, base, tmp_path):
    source = trial(1e-2, "source")
    alone(source)
    (source.directory / ".hydra").mkdir()
    (source.directory / ".hydra" / "config.yaml").touch()
    model = base["model"] | {"pretrained": str(source.directory)}
    many = [trial(1e-9, f"many{seed}", seed=seed, model=model) for seed in (0, 1)]
    fit(many, tmp_path / "all", test=False)
    for one in many:
        close(saved_of(one)[0].params, saved_of(source)[1][0], atol=1e-5)


def test_a_tracker_that_takes_models_gets_one_of_each_trial(trial, base, setups, tmp_path):
    registry, first = ModelRegistry(), trial(RATES[0], "one")
    config = base | {"name": "two"}
    taken = trial_of(config, tmp_path / "two", registry, setups=setups)
    fit([first, taken], tmp_path / "all", test=False)
    assert registry.steps == [setups.of(config).experiment.total_steps]
    assert not (first.directory / "checkpoints").exists()
    (tmp_path / "two" / "population.json").unlink()  # its own is whole without the others
    state, _ = saved_of(taken)
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
        max(x["val/accuracy"] for x in history_of(t)[:-1] if "val/accuracy" in x) for t in trials
    ]
    assert seen[-1]["val/accuracy"] == max(before_last)


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
