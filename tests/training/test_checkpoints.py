"""A run that stopped goes on from its checkpoints as if nothing had happened, or says why not."""

import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments.errors import UserError
from experiments.machine import StopRequest
from experiments.tracking.jsonl import JsonLines
from experiments.training.saving.trials import load_weights
from support import killed_after_saving, timeless


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
