"""Whole runs on the real digits: what they write, how they end, and that they repeat themselves."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments.core.rng import root_key
from experiments.errors import UserError
from experiments.machine import StopRequest
from experiments.tracking.jsonl import JsonLines, read_history
from experiments.tracking.tracker import Tracker
from experiments.training.checkpoints import load_weights
from experiments.training.loop import fit
from experiments.training.runtime import CPU_OPTIONS, SHORT, SHORT_OPTIONS, compiler_options
from experiments.training.setup import Setups
from experiments.training.step import Compiled
from support import composed, killed_after_saving, timeless, trial_of

SMALL = ["model.hidden=[16]", "trainer.figures=false", "trainer.log_every=8"]


@pytest.fixture
def train(tmp_path, data_home):
    """A run in a folder of its own: (summary, metrics.jsonl)."""

    def call(*overrides, folder="run", resume=False, trackers=(), stop=None):
        directory = tmp_path / folder
        plain = ["trainer.checkpoints=false"] if not resume else []
        config = composed(*data_home, *SMALL, *plain, *overrides)
        trial = trial_of(config, directory, *trackers, stop=stop)
        (summary,) = fit([trial], directory, resume=resume)
        return summary, read_history(directory / "metrics.jsonl")

    return call


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
    with pytest.raises(UserError, match="epochs_a_layer=3, of 2 layers each: the run has 5 epochs"):
        train(*stacked, *length, "objective.epochs_a_layer=3", folder="short")


def test_the_same_seed_gives_the_same_numbers_however_steps_are_dispatched(train):
    dropout = ["model.dropout=0.2", "trainer.epochs=2", "data.augment.crop_padding=1"]
    _, first = train(*dropout, "trainer.max_steps_per_dispatch=1", folder="a")
    _, second = train(*dropout, "trainer.max_steps_per_dispatch=64", folder="b")
    _, other = train(*dropout, "seed=1", folder="c")
    assert timeless(first) == timeless(second)
    assert timeless(first) != timeless(other)


@pytest.mark.core
@pytest.mark.parametrize("moment", [24, 40])  # within an epoch, and at the end of one
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(train, moment):
    options = ["trainer.epochs=3", "model.dropout=0.2", "optim.ema_decay=0.9"]
    options += ["trainer.checkpoints=true", "trainer.max_steps_per_dispatch=5"]
    whole, lines = train(*options, folder="whole")

    stop = StopRequest()

    class Interrupter(JsonLines):
        def log(self, step, scalars):
            if step >= moment:
                stop.name = "SIGTERM"

        start = finish = lambda *_: None

    first, _ = train(*options, folder="cut", trackers=[Interrupter()], stop=stop)
    assert first["status"] == "interrupted"
    assert moment <= first["step"] < 60
    second, resumed = train(*options, folder="cut", resume=True)
    assert second["status"] == "finished"
    assert timeless(resumed) == timeless(lines)
    mine, its = ({**summary, "best": None} for summary in (second, whole))
    assert timeless([mine]) == timeless([its])


@pytest.mark.parametrize(
    "looks", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(6, marks=pytest.mark.slow)]
)
def test_it_does_not_matter_where_between_two_steps_the_request_comes(train, looks):
    options = ["trainer.epochs=2", "trainer.checkpoints=true", "trainer.max_steps_per_dispatch=5"]

    class Sudden(StopRequest):
        """Comes true after the run has looked at it some times."""

        def __init__(self):
            self.left = looks + 1

        @property
        def name(self):
            self.left -= 1
            return "SIGTERM" if self.left <= 0 else None

    first, _ = train(*options, stop=Sudden())
    assert first["status"] == "interrupted"
    _, resumed = train(*options, resume=True)
    _, whole = train(*options, folder="whole")
    assert timeless(resumed) == timeless(whole)


@pytest.mark.slow
def test_a_finished_run_says_so_and_goes_on_when_epochs_are_raised(train):
    options = ["trainer.checkpoints=true", "model.dropout=0.2"]
    done, _ = train(*options, "trainer.epochs=1")
    again, lines = train(*options, "trainer.epochs=1", resume=True)
    assert again["test/loss"] == done["test/loss"]
    assert sum("test/loss" in line for line in lines) == 1
    _, longer = train(*options, "trainer.epochs=2", resume=True)
    _, whole = train(*options, "trainer.epochs=2", folder="whole")
    assert timeless(longer) == timeless(whole)


def test_a_run_that_saved_nothing_begins_again_and_says_so(train, tmp_path, caplog):
    _, whole = train("trainer.epochs=2", "trainer.checkpoints=true")
    shutil.rmtree(tmp_path / "run/checkpoints")
    (tmp_path / "run/summary.json").unlink()
    _, again = train("trainer.epochs=2", "trainer.checkpoints=true", resume=True)
    assert "begins again from step 0" in caplog.text
    assert timeless(again) == timeless(whole)


def test_progress_counted_in_other_units_is_refused(train, tmp_path):
    train("trainer.checkpoints=true", "trainer.epochs=2")
    for summary in (True, False):
        for change, words in [
            ("data.batch_size=128", "batch_size was 64, now 128, steps_per_epoch was 20, now 10"),
            ("trainer.steps_per_epoch=5", "steps_per_epoch was 20, now 5"),
        ]:
            with pytest.raises(UserError, match=rf"cannot go on: {words}\n.*model.pretrained="):
                train("trainer.checkpoints=true", "trainer.epochs=4", change, resume=True)
        if summary:
            (tmp_path / "run/summary.json").unlink()
    with pytest.raises(UserError, match=r"cannot go on: data\.split_seed was 0, now 5\n"):
        train("trainer.checkpoints=true", "trainer.epochs=4", "data.split_seed=5", resume=True)


def test_another_monitor_and_a_longer_schedule_are_said(train, caplog):
    options = ["trainer.checkpoints=true", "schedule=cosine"]
    done, _ = train(*options, "trainer.epochs=2")
    longer = [*options, "trainer.epochs=4", "trainer.monitor=loss", "trainer.patience=1"]
    summary, lines = train(*longer, resume=True)
    assert "the best epoch by accuracy (max) is looked for anew" in caplog.text
    assert (
        "stretched from 40 to 80 steps: its factor at step 40 was 0 and is now 0.5" in caplog.text
    )
    assert (done["status"], summary["status"]) == ("finished", "finished")
    later = [line["val/loss"] for line in lines if "val/loss" in line][2:]
    assert summary["best"]["val/loss"] == min(later)


def test_saving_all_the_time_changes_no_number(train):
    options = ["trainer.epochs=2", "trainer.max_steps_per_dispatch=4"]
    _, lines = train(*options, folder="plain")
    saving = [*options, "trainer.checkpoints=true", "trainer.checkpoint_every=0"]
    _, saved = train(*saving, folder="saving")
    assert timeless(saved) == timeless(lines)


@pytest.mark.core
def test_a_run_is_saved_after_epochs_that_are_one_dispatch(train, monkeypatch):
    options = ["trainer.checkpoints=true", "trainer.checkpoint_every=0", "trainer.epochs=4"]
    _, whole = train(*options, folder="whole")
    with killed_after_saving(monkeypatch, step=40):
        train(*options, folder="cut")
    summary, resumed = train(*options, folder="cut", resume=True)
    assert summary["status"] == "finished"
    assert timeless(resumed) == timeless(whole)


@pytest.mark.parametrize("epochs", [2, 3])  # with 2 it was the last one
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(train, tmp_path, caplog, epochs):
    options = ["trainer.checkpoints=true", "trainer.checkpoint_every=0"]
    options += ["trainer.max_steps_per_dispatch=8"]
    _, whole = train(*options, f"trainer.epochs={epochs}", folder="whole")
    train(*options, "trainer.epochs=2")
    newest = max((tmp_path / "run/checkpoints").iterdir(), key=lambda path: int(path.name))
    assert int(newest.name) == 40
    for file in newest.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    (tmp_path / "run/summary.json").unlink()  # it was killed before it wrote that
    summary, lines = train(*options, f"trainer.epochs={epochs}", resume=True)
    assert summary["status"] == "finished"
    assert f"{newest.name} cannot be read" in caplog.text
    assert timeless(lines) == timeless(whole)


def test_no_flipped_byte_in_a_checkpoint_gives_other_weights(train, tmp_path):
    train("trainer.checkpoints=true", "trainer.epochs=1")
    saved = load_weights(tmp_path / "run", 20)
    arrays = max((tmp_path / "run/checkpoints/20").rglob("d/*"), key=lambda p: p.stat().st_size)
    whole, noticed = arrays.read_bytes(), 0
    for place in range(0, len(whole), len(whole) // 20):
        flipped = bytearray(whole)
        flipped[place] ^= 16
        arrays.write_bytes(flipped)
        try:  # some bytes are of older copies that nobody reads
            jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path / "run", 20), saved)
        except UserError:
            noticed += 1
    assert noticed >= 10


def test_a_compressed_checkpoint_is_read(train, monkeypatch):
    """Checkpoints were compressed once."""
    options = ["trainer.checkpoints=true", "model.dropout=0.2"]
    _, whole = train(*options, "trainer.epochs=2", folder="whole")
    compressing = ocp.PyTreeCheckpointHandler
    with monkeypatch.context() as patch:
        patch.setattr(ocp, "PyTreeCheckpointHandler", lambda **_: compressing())
        train(*options, "trainer.epochs=1")
    _, resumed = train(*options, "trainer.epochs=2", resume=True)
    assert timeless(resumed) == timeless(whole)


def test_a_short_training_is_compiled_sooner_and_comes_to_the_same(data_home):
    """A step that XLA's older emitters compile differs by rounding alone."""
    setup = Setups().of(config := composed(*data_home, *SMALL))
    layout, hparams, key = setup.layout(1), setup.inputs_of(config), root_key(np.array([0]))
    lowered = Compiled(setup, layout, 1).lower_train()
    window = next(iter(setup.feed(layout, [0]).windows(0, 0)))
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
    assert late["seconds"] < 5


@pytest.mark.parametrize("size", [1, 100, -1])
def test_one_number_makes_descent_stochastic_mini_batch_or_batch(train, size):
    summary, _ = train(f"data.batch_size={size}", "data.limit=200", "trainer.epochs=2")
    assert summary["step"] == 2 * {1: 200, 100: 2, -1: 1}[size]


def test_streamed_data_train_through_the_same_loop(train):
    options = ["data.stream=true", "data.workers=0", "trainer.epochs=2", "optim.learning_rate=0.01"]
    summary, _ = train(*options, folder="streamed")
    assert summary["val/accuracy"] > 0.5


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
    assert len(opened) == 2 * started  # not more for more epochs
    seen = [event["val/accuracy"] for event in more if "val/accuracy" in event]
    assert len(seen) == 5
    assert timeless(few)[0] == timeless(more)[0]


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
