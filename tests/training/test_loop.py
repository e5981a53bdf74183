"""Whole runs on the real digits: what they write, how they end, and that they repeat themselves."""

import json

import jax
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.tracking.jsonl import read_history
from experiments.tracking.tracker import Tracker
from experiments.training.loop import fit
from experiments.training.saving.trials import load_weights
from support import composed, timeless, trial_of


@pytest.mark.core
def test_a_run_learns_and_writes_what_it_saw(train, tmp_path):
    summary, lines = train("trainer.epochs=8", "trainer.monitor=loss", "optim.learning_rate=0.01")
    assert summary["status"] == "finished"
    assert summary["val/accuracy"] > 0.85
    assert summary["test/accuracy"] > 0.75
    assert summary["parameters"] == 64 * 16 + 16 + 16 * 10 + 10
    steps_per_epoch = 1293 // 64
    assert summary["step"] == 8 * steps_per_epoch
    assert lines[0]["step"] == 1
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    validated = [line for line in lines if "val/loss" in line]
    assert [line["epoch"] for line in validated] == list(range(1, 9))
    assert validated[-1]["train/epoch_loss"] < validated[0]["train/epoch_loss"]
    best = min(validated, key=lambda line: line["val/loss"])
    assert summary["best"]["val/loss"] == best["val/loss"]
    for key in ("train/loss", "learning_rate", "grad_norm", "param_norm", "update_norm"):
        assert all(np.isfinite(line[key]) for line in lines[:-1])
    assert "test/accuracy" in lines[-1]
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert written["test/accuracy"] == summary["test/accuracy"]
    assert written["status"] == "finished"


def test_layer_by_layer_the_weights_that_stay_are_of_the_whole_task(train, tmp_path):
    stacked = ["model=stacked_autoencoder", "model.hidden=[16]", "model.latents=8", "optim=adam"]
    length = ["objective.epochs_a_layer=1", "trainer.epochs=5", "optim.learning_rate=0.01"]
    summary, lines = train(*stacked, *length, "trainer.checkpoints=true")
    validated = [line for line in lines if "val/loss" in line]
    losses = [line["val/loss"] for line in validated]
    assert losses == [line["val/reconstruction"] for line in validated]
    assert min(losses) > 1  # of 64 pixels: no term of it is missing
    assert summary["best"]["epoch"] == 1 + int(np.argmin(losses)) == 5  # all layers learn together
    assert summary["test/loss"] < 0.8 * losses[0]
    best, last = (load_weights(tmp_path / "run", step)[0] for step in (None, 100))
    jax.tree.map(np.testing.assert_array_equal, best, last)
    reached, _ = train(*stacked, *length, "trainer.target_loss=1000.0", folder="target")
    assert reached["epoch"] == 3  # not by the loss of a layer
    with pytest.raises(UserError, match="epochs_a_layer=3, of 2 layers each: the run has 5 epochs"):
        train(*stacked, *length, "objective.epochs_a_layer=3", folder="short")


def test_the_same_seed_gives_the_same_numbers_however_steps_are_dispatched(train):
    dropout = ["model.dropout=0.2", "trainer.epochs=2", "data.augment.crop_padding=1"]
    _, first = train(*dropout, "trainer.max_steps_per_dispatch=1", folder="a")
    _, second = train(*dropout, "trainer.max_steps_per_dispatch=64", folder="b")
    _, other = train(*dropout, "seed=1", folder="c")
    assert timeless(first) == timeless(second)
    assert timeless(first) != timeless(other)


def test_a_diverging_run_says_at_which_step(train):
    options = ["optim=sgd", "loss=mse", "optim.learning_rate=1.0e+6", "trainer.epochs=3"]
    summary, lines = train(*options)
    assert summary["status"] == "diverged"
    assert summary["diverged_at"] == lines[-1]["step"] == summary["step"]
    assert "test/loss" not in summary
    skipped, _ = train(*options, "trainer.on_nan=skip", folder="skip")
    assert skipped["status"] == "finished"


def test_patience_target_loss_and_time_stop_a_run_early(train):
    patient, _ = train("trainer.epochs=50", "trainer.patience=1", "optim.learning_rate=0.0")
    assert patient["status"] == "stopped_early"
    assert patient["step"] == 2 * (1293 // 64)
    reached, _ = train("trainer.epochs=50", "trainer.target_loss=1.0", folder="target")
    assert reached["status"] == "stopped_early"
    assert reached["train/epoch_loss"] <= 1.0
    late, _ = train("trainer.epochs=100000", "trainer.max_time=1.0", folder="late")
    assert late["status"] == "stopped_early"
    assert late["seconds"] < 30  # of 100,000 epochs, on a machine that others use too


@pytest.mark.parametrize("size", [1, 100, -1])
def test_one_number_makes_descent_stochastic_mini_batch_or_batch(train, size):
    summary, _ = train(f"data.batch_size={size}", "data.limit=200", "trainer.epochs=2")
    assert summary["step"] == 2 * {1: 200, 100: 2, -1: 1}[size]


def test_streamed_data_train_through_the_same_loop(train):
    options = ["data.stream=true", "data.workers=0", "trainer.epochs=2", "optim.learning_rate=0.01"]
    summary, _ = train(*options, folder="streamed")
    assert summary["val/accuracy"] > 0.5


@pytest.fixture
def opened(monkeypatch):
    """The positions at which streams were opened, each time with new reading processes."""
    from experiments.data.reading.stream import _Batches

    positions, go_to = [], _Batches.go_to
    noted = lambda self, at: (positions.append(at), go_to(self, at))  # noqa: E731
    monkeypatch.setattr(_Batches, "go_to", noted)
    return positions


STREAMED = ["data.stream=true", "data.workers=0", "data.limit=256"]


def test_a_stream_is_read_on_from_epoch_to_epoch(train, opened):
    options = ["trainer.epochs=3", "trainer.checkpoints=true", "trainer.checkpoint_every=0"]
    train(*STREAMED, *options)
    assert opened == [0, 0, 0]  # training, validation, test: to start the readers takes seconds


def test_a_streamed_split_is_evaluated_every_epoch_by_the_same_readers(train, opened):
    options = [*STREAMED, "data.eval_batch_size=20"]
    _, few = train(*options, "trainer.epochs=2", folder="few")
    started = len(opened)
    _, more = train(*options, "trainer.epochs=5", folder="more")
    # not more for more epochs; what is evaluated stays open from run to run of the same data
    assert (started, len(opened)) == (3, 4)
    seen = [event["val/accuracy"] for event in more if "val/accuracy" in event]
    assert len(seen) == 5
    assert timeless(few)[0] == timeless(more)[0]


def test_between_two_lines_it_is_said_how_far_a_run_is(train):
    class Watching(Tracker):
        def __init__(self):
            self.seen = {}

        def progress(self, step, scalars):
            self.seen[step] = scalars["train/loss"]

    watching, options = Watching(), ["trainer.epochs=1", "trainer.max_steps_per_dispatch=1"]
    _, lines = train(*options, "trainer.log_every=1", folder="every")
    losses = {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
    train(*options, "trainer.log_every=16", trackers=[watching])
    assert list(watching.seen) == [*range(2, 16), *range(17, 20)]
    for step, loss in watching.seen.items():
        first = 2 if step < 16 else 17
        mean = np.mean([losses[i] for i in range(first, step + 1)])
        assert loss == pytest.approx(mean, rel=1e-6)


def test_debug_overfit_brings_the_loss_near_zero(train):
    summary, _ = train("debug=overfit", "trainer.checkpoints=false", "optim.learning_rate=0.01")
    assert summary["status"] == "stopped_early"
    assert summary["train/epoch_loss"] <= 0.01


@pytest.mark.slow
def test_vgg16_with_batch_norm_lowers_the_loss_on_the_digits(tmp_path, data_home):
    # the published network at an eighth of its widths; experiment=vgg16_digits is the whole one
    overrides = ["model=vgg16", "model.batch_norm=true", "model.widths=[8,16,32,64,64]"]
    overrides += ["data.limit=256", "trainer.epochs=3", "trainer.eval_batches=1"]
    overrides += ["trainer.figures=false", "trainer.checkpoints=false"]
    trial = trial_of(composed(*data_home, *overrides), tmp_path)
    assert trial.setup.experiment.input_shape == (32, 32, 1)
    fit([trial], tmp_path)
    losses = [
        e["train/epoch_loss"]
        for e in read_history(tmp_path / "metrics.jsonl")[:-1]
        if "val/loss" in e
    ]
    assert losses[-1] < losses[0]


def test_the_profiler_leaves_a_trace_even_of_fewer_steps_and_ends_nothing(train, tmp_path, caplog):
    options = ["trainer.epochs=1", "trainer.max_steps_per_dispatch=2"]
    train(*options, "trainer.profile_steps=1000")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "profile").write_text("a file")
    summary, _ = train(*options, "trainer.profile_steps=3", folder="full")
    assert summary["status"] == "finished"
    assert sum("no profile in" in message for message in caplog.messages) == 1
