import io
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from experiments.viz.classification_figures import confusion_matrix, sample_predictions
from experiments.viz.figures import learning_curves
from experiments.viz.sequence_figures import against_target


def drawn(figure):
    """The picture as an array, after making sure that something is on it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    picture = np.asarray(Image.open(file).convert("RGB"))
    assert (picture != picture[0, 0]).any(axis=-1).mean() > 0.001
    return picture


def texts(figure):
    found = [t.get_text() for ax in figure.axes for t in ax.texts]
    found += [ax.get_title(loc="left") for ax in figure.axes]
    found += [t.get_text() for ax in figure.axes if ax.get_legend() for t in ax.get_legend().texts]
    return found


def history(steps, value=lambda step: 2.3 * math.exp(-step / 40), rate=lambda step: 1e-3):
    """Ten steps an epoch; the loss is lowest after the second, the accuracy highest at the end."""
    events = [
        {
            "step": s,
            "epoch": s / 10,
            "train/loss": value(s),
            "train/accuracy": min(s / 10, 0.5),
            "learning_rate": rate(s),
        }
        for s in range(1, steps + 1)
    ]
    for event in events[9::10]:
        event |= {"val/loss": abs(event["step"] - 20) + 0.5, "val/accuracy": event["step"] / 100}
    return events


TESTED = {"step": 40, "epoch": 4.0, "test/loss": 0.4, "test/accuracy": 0.25}


def points(figure, label):
    """Where what is labelled so is drawn in each panel, as (x, y)."""
    lines = [line for ax in figure.axes for line in ax.lines if line.get_label() == label]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines]


def test_learning_curves_mark_the_epoch_that_is_used():
    figure = learning_curves([*history(40), TESTED], monitor=("loss", "min"))
    drawn(figure)
    loss, accuracy = figure.axes  # a learning rate that does not change has no panel
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["loss", "accuracy"]
    assert points(figure, "best epoch: 0.5") == [(2.0, 0.5)]  # the smallest loss
    assert points(figure, "best epoch: 0.2") == [(2.0, 0.2)]  # the accuracy of the same epoch
    assert points(figure, "test 0.4") == [(2.0, 0.4)]  # of the weights of that epoch
    assert loss.get_xlabel() == "epoch of 10 steps"
    assert accuracy.get_ylim()[0] > 0.05  # not from what it was before the first evaluation
    assert not any(
        "best" in text for text in texts(learning_curves(history(40), monitor=("loss", "last")))
    )


def test_a_learning_rate_that_changes_has_a_panel():
    figure = learning_curves(history(40, rate=lambda step: 1 / step), units={"loss": "of $"})
    assert texts(figure)[:2] == [r"loss (of \$)", "accuracy"]
    assert [ax.get_title(loc="left") for ax in figure.axes][-1] == "learning rate"


def test_outputs_of_a_regression_are_in_the_unit_of_its_column():
    targets = np.array([-1.0, 0.0, 1.0])
    figure = against_target(targets, targets + 0.5, 0.1, name="price", mean=100.0, std=20.0)
    (ax,) = figure.axes
    assert ax.get_xlabel() == "price"
    np.testing.assert_allclose(ax.lines[-1].get_xdata(), [80.0, 100.0, 120.0])
    assert ax.get_title(loc="left") == "mean absolute error 10"
    drawn(figure)


def test_wide_range_is_logarithmic_and_long_curves_are_smoothed():
    loss, _ = learning_curves(history(300)).axes
    assert loss.get_yscale() == "log"
    raw, smooth = (line.get_ydata() for line in loss.lines[:2])
    assert len(raw) == len(smooth) == 300
    assert smooth[0] == pytest.approx(raw[0])  # no bias towards zero at the start
    flat = learning_curves(history(300, lambda step: 1.0)).axes[0]
    np.testing.assert_allclose(flat.lines[1].get_ydata(), 1.0)


def test_divergence_is_marked():
    events = history(40, lambda step: 1.0 if step < 30 else math.nan)
    figure = learning_curves(events)
    drawn(figure)
    assert "not finite from epoch 3" in texts(figure)


@pytest.mark.parametrize(
    "events",
    [
        [],
        [{"step": 5, "train/loss": 1.0}],
        [{"step": 5, "val/loss": 0.0, "val/accuracy": 1.0}],
        [{"step": 1, "train/loss": math.nan, "val/loss": math.inf}],
        history(200, lambda step: 0.0),
        history(200, lambda step: -step),
        history(200, lambda step: 1e30),
        [{"step": 5, "grad_norm": 1.0}],
    ],
    ids=["nothing", "one", "one val", "nan", "constant", "negative", "huge", "other"],
)
def test_learning_curves_of_odd_histories(events):
    drawn(learning_curves(events))


def test_confusion_matrix_writes_counts():
    counts = np.array([[90, 10, 0], [1234, 6, 0], [0, 0, 0]])
    figure = confusion_matrix(counts, ["cat", "dog", "a class with a very long name"], "test")
    drawn(figure)
    assert {"90", "10", "1234", "6"} <= set(texts(figure))
    assert "test: 7.16% correct (96 of 1,340)" in texts(figure)
    shares = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(shares.sum(axis=1), [1, 1, 0])


def test_many_classes_list_the_commonest_confusions():
    counts = np.diag(np.full(1000, 50))
    counts[3, 7], counts[8, 2] = 20, 30
    figure = confusion_matrix(counts, [f"c{i}" for i in range(1000)], "test")
    drawn(figure)
    assert "30  c8 → c2\n20  c3 → c7" in texts(figure)


@pytest.mark.parametrize("classes", [1, 12, 50])
@pytest.mark.parametrize("value", [0, 7])
def test_confusion_matrix_of_any_size(classes, value):
    counts = np.full((classes, classes), value)
    drawn(confusion_matrix(counts, [f"class {i}" for i in range(classes)], "test"))


def test_sample_predictions_name_the_true_class_of_errors():
    images = np.linspace(0, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3)
    figure = sample_predictions(
        images, np.array([0, 0]), np.array([[0.9, 0.1], [0.24, 0.76]]), ["$a_^$", "dog"]
    )
    drawn(figure)
    right, wrong = figure.axes[0].texts
    assert right.get_text() == r"\$a_^\$  90%"  # the name itself, and no formula
    assert wrong.get_text() == "dog  76%\ntrue: \\$a_^\\$"
    assert right.get_color() != wrong.get_color()


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("channels", [1, 3])
def test_sample_predictions_of_any_number(count, channels):
    images = np.random.default_rng(0).uniform(size=(count, 8, 8, channels))
    probabilities = np.full((count, 1000), 0.001)
    names = [f"a rather long class name {i}" for i in range(1000)]
    figure = sample_predictions(images, np.zeros(count, int), probabilities, names)
    drawn(figure)
    assert len(figure.axes[0].images) == min(count, 16)


def test_sample_predictions_of_a_diverged_model():
    images = np.full((2, 4, 4, 1), np.nan)
    figure = sample_predictions(images, np.array([0, 1]), np.full((2, 3), np.nan), "abc")
    drawn(figure)
    assert figure.axes[0].texts[0].get_text() == "a  ?"


def test_no_examples():
    nothing = np.zeros((0, 8, 8, 1)), np.zeros(0, int), np.zeros((0, 3))
    sample_predictions(*nothing, "abc").savefig(io.BytesIO(), format="png")


@pytest.mark.slow
def test_pyplot_is_never_imported():
    code = (
        "import io, sys, numpy as np\n"
        "from experiments.viz.classification_figures import confusion_matrix\n"
        "confusion_matrix(np.eye(3), 'abc', 'test').savefig(io.BytesIO(), format='png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
