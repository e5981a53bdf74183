import io
import logging
import re
import sys

import pytest
from rich.console import Console

from experiments.tracking import terminal
from experiments.tracking.terminal import Terminal


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(terminal, "time", clock)
    return clock


def plain_lines(run, clock, events, summary=None, status="finished"):
    """The output for events of (seconds since the one before, step, scalars)."""
    out = io.StringIO()
    tracker = Terminal(Console(file=out, width=80))
    tracker.start(run)
    for seconds, step, scalars in events:
        clock.now += seconds
        tracker.log(step, {"epoch": step / run.steps_per_epoch, **scalars})
    tracker.finish(summary or {}, status)
    return out.getvalue().splitlines()


def test_plain_output(run_info, clock):
    events = [
        (2, 1, {"train/loss": 2.302585, "examples_per_second": 870.0}),
        (5, 5, {"train/loss": 1.0, "examples_per_second": 12345.0}),
        (2, 8, {"train/loss": 0.000123456, "examples_per_second": 12345.0}),
        (1, 10, {"train/loss": 0.5, "train/epoch_loss": 0.7, "val/loss": 0.6, "val/accuracy": 0.9}),
        (9, 40, {"train/loss": 0.1, "val/accuracy": 0.95, "val/loss": 0.2}),
    ]
    summary = {
        "val/loss": 0.2,
        "best": {"epoch": 4.0, "train/loss": 0.1, "val/loss": 0.2, "val/accuracy": 0.95},
        "test/loss": 0.21,
        "test/accuracy": 0.94,
        "seconds": 80.2,  # of this sitting and those before
        "examples_per_second": 11800.0,
        "wandb": "https://wandb.ai/me/p/runs/ab12cd",
    }
    run = run_info()
    assert plain_lines(run, clock, events, summary) == [
        "mlp_digits_ab12cd: 40 steps, 2,410 parameters",
        " 1/40  epoch 0.10/4    870 examples/s  train loss  2.303",
        " 5/40  epoch 0.50/4  12.3k examples/s  train loss  1.000  44s left",
        "40/40  epoch 4.00/4  train loss 0.1000 | val loss 0.2000 accuracy 0.9500",
        "status      finished",
        "best        val loss 0.2000 accuracy 0.9500 @ epoch 4",
        "test        loss 0.2100 accuracy 0.9400",
        "time        1:20",
        "speed       11.8k examples/s",
        "parameters  2,410",
        f"run folder  {run.directory}",
    ]  # the address of the W&B run was there from the start


def test_classes_are_a_table_and_few_metrics_a_line(run_info, clock):
    values = {"val/loss": 0.5, "val/recall": 0.75, "val/macro_f1": 0.25}
    classes = [
        {"class": f"[kind] {i}", "support": i, "recall": 1.0, "f1": 1 - i / 30} for i in range(30)
    ]
    run = run_info(config={"trainer": {"monitor": "macro_f1"}})
    lines = plain_lines(run, clock, [(1, 40, values)], {"classes": classes})
    assert lines[1].endswith("val loss 0.5000 macro_f1 0.2500")
    assert lines[-22:-20] == [
        "the 20 classes of the lowest F1, of 30:",
        "class      support  recall      f1",
    ]
    assert lines[-20] == "[kind] 29       29  1.0000  0.0333"


def test_long_lines_are_shown_as_they_grow(run_info, clock):
    out = io.StringIO()
    tracker = Terminal(Console(file=out, width=80))
    tracker.start(run_info())
    for step in range(1, 9):
        clock.now += 3
        (tracker.progress if step > 1 else tracker.log)(step, {"train/loss": 1.0 / step})
    assert out.getvalue().splitlines()[1:] == [
        " 1/40  epoch 0.10/4  train loss  1.000",
        " 3/40  epoch 0.30/4  train loss 0.3333  1:51 left",
        " 5/40  epoch 0.50/4  train loss 0.2000  1:45 left",
        " 7/40  epoch 0.70/4  train loss 0.1429  1:39 left",
    ]


def test_short_epochs_cost_a_line_every_few_seconds(run_info, clock):
    events = [(0.1, 10 * i, {"val/loss": 1.0 / i}) for i in range(1, 101)]
    lines = plain_lines(run_info(total_steps=1000), clock, events)
    shown = [line for line in lines if "val loss" in line]
    assert 2 <= len(shown) <= 4
    assert shown[0].startswith("  10/1000")
    assert shown[-1].startswith("1000/1000")


def test_a_line_of_each_epoch_stays_above_the_bar_and_long_ones_are_whole(run_info, clock):
    screen = io.StringIO()
    tracker = Terminal(Console(file=screen, force_terminal=True, width=60, _environ={}))
    tracker.start(run_info())
    for epoch in range(1, 5):
        clock.now += 1
        values = {"train/loss": 1 / epoch, "val/loss": 2 / epoch, "val/accuracy": 0.9}
        tracker.log(10 * epoch, {"epoch": float(epoch), **values})
    tracker._print("a long line with a path: " + "/folder" * 20)
    tracker.finish({}, "finished")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    lines = text.replace("\r", "\n").splitlines()
    stay = [line for line in lines if line.startswith(("10/40", "20/40", "30/40", "40/40"))]
    assert len(stay) == 4
    assert stay[0] == "10/40  epoch 1.00/4  train loss  1.000 | val loss  2.000 accuracy 0.9000"
    assert "a long line with a path: " + "/folder" * 20 in lines


def test_resumed_and_diverged_run(run_info, clock):
    events = [(1, 21, {"train/loss": float("nan")})]
    lines = plain_lines(run_info(start_step=20), clock, events, status="diverged")
    assert lines[0] == "mlp_digits_ab12cd: 40 steps from step 20, 2,410 parameters"
    assert lines[1] == "21/40  epoch 2.10/4  train loss    nan"
    assert lines[2] == "status      diverged"


def test_phases_before_the_run_is_known(capsys):
    tracker = Terminal(Console())
    tracker.status("reading data")
    tracker.finish({}, "failed")
    assert capsys.readouterr().out == "reading data\n"


def test_live_bar_and_logging_share_the_terminal(run_info, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    try:
        tracker = Terminal(Console(file=screen, force_terminal=True, width=80, _environ={}))
        tracker.status("reading data")
        tracker.start(run_info(config={"mode": "train"}))
        tracker.log(20, {"epoch": 2.0, "train/loss": 0.5, "val/accuracy": 0.75})
        logging.getLogger().warning("a line of log")
        tracker.log(21, {"epoch": 2.1, "train/loss": 0.25})
        tracker._bar.refresh()
        tracker.finish({}, "interrupted")
        assert handler.stream is screen
    finally:
        logging.getLogger().removeHandler(handler)
    text = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())  # without colours
    assert "reading data" in text
    # the log line begins where the bar was wiped away, and the bar is drawn again below it
    assert re.search(r"\x1b\[2Ka line of log\n.*training.*21/40", text, re.DOTALL)
    assert "train loss 0.2500 | val accuracy 0.7500" in text
    assert text.splitlines()[-1].startswith("go on with  python run.py resume=")
    assert text.count("\x1b[?25h") == 1  # the cursor is back


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1, "0.1000"), (2.302585, "2.303"), (1234.5, "1234"), (123456.0, "1.235e+05"), (7, "7")],
)
def test_number(value, text):
    assert terminal.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(870, "870"), (999.7, "1.00 k"), (12345, "12.3 k"), (123456, "123 k"), (4.56e6, "4.56 M")],
)
def test_quantity(value, text):
    assert terminal.quantity(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(42, "42s"), (187, "3:07"), (3729, "1:02:09")])
def test_duration(seconds, text):
    assert terminal.duration(seconds) == text


def test_units_and_what_a_test_is_to_be_read_with_are_said(run_info, clock):
    errors = {"val/loss": 0.25, "val/absolute_error": 8000.0, "val/squared_error": 0.5}
    units = {"loss": "standardised", "squared_error": "standardised", "absolute_error": "of price"}
    run = run_info(units=units, test_note="other houses")
    lines = plain_lines(run, clock, [(2, 10, errors)], {"test/loss": 0.3})
    # the loss says as much as the squared error
    assert lines[1].endswith("val loss 0.2500 standardised absolute_error   8000 of price")
    where = lines.index("test        loss 0.3000 standardised")
    assert lines[where + 1] == "            other houses"
    assert not any("other houses" in line for line in plain_lines(run, clock, [(2, 10, errors)]))
    last = {"best": {"epoch": 4.0, "val/loss": 0.2}, "monitor_mode": "last"}  # as of a GAN
    lines = plain_lines(run, clock, [(2, 10, errors)], last)
    assert "last        val loss 0.2000 standardised @ epoch 4" in lines
    bits = run_info(units={"loss": "bits"})
    lines = plain_lines(bits, clock, [(2, 10, {"val/loss": 0.25, "val/accuracy": 0.75})])
    assert lines[1].endswith("val loss 0.2500 bits accuracy 0.7500")
