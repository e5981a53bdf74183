"""Programs that an earlier run has left: found again, never the wrong one, never in the way."""

import os
import shutil
import time

import jax
import numpy as np
import pytest

from experiments.core import programs
from experiments.core.experiment import Experiment
from experiments.core.programs import Programs, _source
from experiments.training.loop import fit
from experiments.training.saving.trials import load_weights
from experiments.training.setup import Setups
from support import TINY, composed, lines_of, trial_of

pytestmark = pytest.mark.usefixtures("kept_programs")


@pytest.fixture
def config(data_home):
    """The config of a small model, with these overrides."""
    return lambda *overrides: composed(*data_home, *TINY, "trainer.epochs=1", *overrides)


@pytest.fixture
def traced(monkeypatch):
    """The functions of an experiment that are traced, as a list that grows."""
    names: list[str] = []
    for name in ("abstract_state", "begin", "train_step", "eval_step"):
        original = getattr(Experiment, name)

        def noted(self, *arguments, _name=name, _original=original, **options):
            names.append(_name)
            return _original(self, *arguments, **options)

        monkeypatch.setattr(Experiment, name, noted)
    return names


@pytest.mark.core
@pytest.mark.parametrize("seeds", [(0,), pytest.param((0, 1), marks=pytest.mark.slow)])
def test_a_later_start_traces_nothing_and_gives_the_same_bits(config, traced, tmp_path, seeds):
    one = config("model.dropout=0.2", "optim.ema_decay=0.9")
    found = []
    for folder in ("first", "later"):
        traced.clear()
        setups, folders = Setups(), {seed: tmp_path / folder / str(seed) for seed in seeds}
        trials = [trial_of(one | {"seed": s}, f, setups=setups) for s, f in folders.items()]
        fit(trials, tmp_path / folder)
        found.append((set(traced), [(lines_of(f), load_weights(f)) for f in folders.values()]))
    (first, expected), (later, others) = found
    assert first == {"abstract_state", "begin", "train_step", "eval_step"}
    assert not later
    jax.tree.map(np.testing.assert_array_equal, others, expected)


def test_another_program_is_not_taken_for_it(config, traced):
    def traces(*overrides):
        traced.clear()
        assert Setups().of(config(*overrides)).traced.state.params
        return bool(traced)

    assert traces()
    assert not traces()
    assert not traces("name=other", "optim.learning_rate=0.2")
    for static in ("model.hidden=[9]", "data.limit=120", "data.batch_size=32", "optim=sgd"):
        assert traces(static)
    with jax.default_matmul_precision("float32"):
        assert traces()


def test_they_follow_from_the_source_of_this_package(tmp_path, monkeypatch):
    changed = tmp_path / "experiments"
    shutil.copytree(programs.PACKAGE / "core", changed / "core")
    monkeypatch.setattr(programs, "PACKAGE", changed)
    before = _source.__wrapped__()
    assert _source.__wrapped__() == before
    with (changed / "core" / "optim.py").open("a") as file:
        file.write("\n")
    assert _source.__wrapped__() != before


def test_they_follow_from_the_plugins_of_devices(monkeypatch):
    here = {"jax": "0.10.2", "nvidia_cudnn_cu13": "9.1", "jax_cuda13_plugin": "0.10.2"}
    monkeypatch.setattr(programs, "packages", lambda: here)
    before = _source.__wrapped__()
    monkeypatch.setattr(programs, "packages", lambda: here | {"nvidia_cudnn_cu13": "9.2"})
    assert _source.__wrapped__() != before


def own_schedule(step, steps_per_epoch, total_steps):
    """A schedule of the user's own, which may change at any time."""
    return 1.0


def test_nothing_is_kept_of_code_from_elsewhere(config, traced, kept_programs):
    own = config() | {"schedule": {"_target_": f"{__name__}.own_schedule", "_partial_": True}}
    for _ in range(2):
        traced.clear()
        assert Setups().of(own).traced
        assert "train_step" in traced
    assert not kept_programs.exists()
    assert Programs({"optim": {"rule": "mine.rule"}}, (), len).folder is None
    assert Programs({"optim": {"rule": "optax.lion"}}, (), len).folder == kept_programs


def test_what_cannot_be_trusted_is_traced_anew(config, traced, kept_programs, caplog):
    found = Setups().of(config()).traced
    for path in (files := list(kept_programs.iterdir())):
        path.write_bytes(path.read_bytes()[:-7])
    traced.clear()
    assert Setups().of(config()).traced == found
    assert traced
    assert caplog.text.count("cannot be used, it is made anew: ") == len(files) == 2
    traced.clear()
    assert Setups().of(config()).traced == found
    assert not traced  # they have been written again
    kept_programs.chmod(0o755)
    files[0].chmod(0o666)
    for _ in range(2):
        assert Setups().of(config()).traced == found
    assert traced
    assert caplog.text.count(f"{files[0]} can be written by others; remove it") == 1


def test_programs_that_no_run_has_used_for_a_month_are_deleted(kept_programs):
    kept = Programs({}, (), len)
    for name in ("used", "unused"):
        kept.recall("number", name, lambda: 1)
    files = list(kept_programs.iterdir())
    for path in files:
        os.utime(path, (month := time.time() - 31 * 24 * 3600, month))
    assert kept.recall("number", "used", lambda: 2) == 1
    kept.recall("number", "new", lambda: 3)
    assert len(set(files) & set(kept_programs.iterdir())) == 1
