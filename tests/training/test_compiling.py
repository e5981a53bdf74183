"""What is traced and compiled, and how often."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.core.rng import root_key
from experiments.training.loop import fit
from experiments.training.runtime import CPU_OPTIONS, SHORT, SHORT_OPTIONS, compiler_options
from experiments.training.setup import Setups
from experiments.training.step import Compiled
from support import RATES, SMALL, composed, trial_of


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


@pytest.mark.core
def test_no_step_compiles_twice(train):
    compiled = []

    def note(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    train("trainer.epochs=1", folder="once")
    few = len(compiled)
    compiled.clear()
    train("trainer.epochs=4", folder="more")
    assert len(compiled) <= few
    compiled.clear()
    lowered = ["schedule=reduce_on_plateau", "schedule.patience=0", "schedule.threshold=1.0"]
    summary, _ = train("trainer.steps=50", "trainer.eval_every=9", *lowered, folder="lowered")
    assert summary["learning_rate"] < 0.9e-3
    assert len(compiled) <= few


def test_a_short_training_is_compiled_sooner_and_comes_to_the_same(data_home, monkeypatch):
    """A step that XLA's older emitters compile differs by rounding alone."""
    monkeypatch.delenv("XLA_FLAGS")  # of all tests, whose options would not be given again
    setup = Setups().of(config := composed(*data_home, *SMALL))
    layout, hparams, key = setup.layout(1), setup.inputs_of(config), root_key(np.array([0]))
    lowered = Compiled(setup, layout, 1).lower_train()
    window = next(iter(setup.feed(layout, [0]).windows(0, 1)))
    hparams, initial = jax.tree.map(
        lambda leaf: np.asarray(leaf)[None], (hparams, setup.experiment.init(hparams, root_key(0)))
    )
    ended = []
    # XLA's own, which the flags that all tests run under replace by those of short runs
    defaults = {"xla_cpu_use_fusion_emitters": True, "xla_cpu_parallel_codegen_split_count": 32}
    defaults = {name: defaults[name] for name in SHORT_OPTIONS}
    for options in (compiler_options(SHORT - 1), defaults | compiler_options(SHORT)):
        run = lowered.compile(compiler_options=options)
        state = jax.tree.map(jnp.copy, initial)  # which the program takes
        count = np.int32(0), np.int32(8)
        state, _ = run(state, window.arrays, window.order, *count, hparams, key)
        ended.append((run.as_text().count(" fusion("), state.params))
    (few, params), (many, others) = ended
    assert few < many if "xla_cpu_use_fusion_emitters" in SHORT_OPTIONS else few == many
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), params, others
    )


@pytest.mark.core
@pytest.mark.parametrize(("name", "value"), (CPU_OPTIONS | SHORT_OPTIONS).items())
def test_the_installed_xla_knows_every_option(name, value):
    jax.jit(lambda x: x + 1).lower(1.0).compile(compiler_options={name: value})
