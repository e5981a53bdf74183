"""The metrics of an evaluation equal scikit-learn's, in several batches with padding."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from experiments.core.metrics import sums_of
from experiments.errors import UserError
from experiments.objectives.classification import Classification
from experiments.objectives.metrics import Errors, Ranking, Statistic, monitored
from experiments.tracking.terminal import DETAILS, Terminal
from experiments.training.evaluation import Totals
from experiments.training.loop import fit
from experiments.training.restored import Restored
from experiments.training.setup import Setups
from support import TINY, composed, trial_of


def logits(outputs, targets):
    raise NotImplementedError


def measured(metrics, predictions, batch, size):
    """The scalars and the table of examples in batches of a size, the last one padded with NaN."""
    totals, count = Totals(metrics), len(predictions)
    program = jax.jit(lambda shown, part: sums_of(metrics, {}, shown, part))
    for start in range(0, count, size):
        index = np.arange(start, start + size)
        part = {name: jnp.asarray(array[index % count]) for name, array in batch.items()}
        part["mask"] = jnp.asarray(index < count, jnp.float32)
        shown = np.where((index < count)[:, None], predictions[index % count], np.nan)
        totals.add(jax.tree.map(lambda one: one[None], program(jnp.asarray(shown), part)))
    return totals.measured()[0]


def scores(label, classes, seed=0):
    """Probabilities that are right more often than not."""
    z = np.random.default_rng(seed).normal(size=(len(label), classes))
    z[np.arange(len(label)), label] += 1.5
    return np.asarray(jax.nn.softmax(jnp.asarray(2 * z, jnp.float32)))


def expected(label, p):
    """The metrics by scikit-learn."""
    hit, confidence, predicted = p.argmax(1) == label, p.max(1), p.argmax(1)
    true, shown = calibration_curve(hit, confidence, n_bins=15)
    shares = np.histogram(confidence, np.linspace(0, 1, 16))[0] / len(p)
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        label, predicted, labels=range(p.shape[1]), zero_division=0
    )
    table = {"precision": precision, "recall": recall, "f1": f1, "support": support}
    return {
        "balanced_accuracy": sk.balanced_accuracy_score(label, predicted),
        "macro_f1": sk.f1_score(label, predicted, average="macro"),
        "precision": sk.precision_score(label, predicted, average="macro", zero_division=0),
        "recall": sk.recall_score(label, predicted, average="macro", zero_division=0),
        "calibration_error": np.sum(np.abs(true - shown) * shares[shares > 0]),
    }, table


def ranked(label, p):
    """(AUROC, average precision), each class that occurs against all others, by scikit-learn."""
    found = [c for c in range(p.shape[1]) if np.any(label == c)]
    return (
        np.mean([sk.roc_auc_score(label == c, p[:, c]) for c in found]),
        np.mean([sk.average_precision_score(label == c, p[:, c]) for c in found]),
    )


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@pytest.mark.parametrize(("count", "tolerance"), [(360, 1e-3), (10_000, 2e-4)])
@pytest.mark.parametrize("classes", [2, 12])
def test_classification_equals_scikit_learn(classes, count, tolerance):
    label = np.random.default_rng(1).choice(max(classes - 1, 2), count)  # of 12 one never occurs
    p = scores(label, classes)
    objective = Classification(loss=logits, head="softmax", num_classes=classes)
    found = measured(objective.metrics, p, {"label": label}, 256)
    wanted, table = expected(label, p)
    for name, value in wanted.items():
        assert found.line[name] == pytest.approx(value, abs=1e-6), name
    for name, column in table.items():
        np.testing.assert_allclose(found.per_class[name], column, atol=1e-6)
    assert ("top5_accuracy" in found.line) == (classes >= 10)
    if classes >= 10:
        top5 = sk.top_k_accuracy_score(label, p, k=5, labels=range(classes))
        assert found.line["top5_accuracy"] == pytest.approx(top5, abs=1e-6)
    pair = found.line["auroc"], found.line["average_precision"]
    np.testing.assert_allclose(pair, ranked(label, p), atol=tolerance)


def test_scores_that_are_equal_are_no_ranking():
    label = np.arange(100) % 4 % 3
    p = np.tile(np.float32([0.2, 0.3, 0.5]), (100, 1))
    found = measured({"ranking": Ranking(3)}, p, {"label": label}, 64).line
    np.testing.assert_allclose(found["auroc"], 0.5)
    assert found["average_precision"] == pytest.approx(ranked(label, p)[1], abs=0.01)


def test_the_area_under_the_curve_is_exact_for_scores_in_bins():
    label = np.random.default_rng(1).choice(3, 500)
    ranking, p = Ranking(3), scores(label, 3)
    batch = {"label": jnp.asarray(label), "mask": jnp.ones(500)}
    sums = {name: np.asarray(array)[None] for name, array in ranking.sums(p, batch).items()}
    place = np.tile(np.arange(ranking.bins), 2)
    true = np.repeat([1, 0], ranking.bins)
    areas = [
        sk.roc_auc_score(true, place, sample_weight=np.append(positive, negative))
        for negative, positive in zip(*sums["counts"][0], strict=True)
    ]
    assert ranking.scalars(sums)["auroc"][0] == pytest.approx(np.mean(areas), abs=1e-6)


def test_regression_equals_scikit_learn_far_from_zero():
    rng = np.random.default_rng(0)
    target = rng.normal(2000, [1, 10], (500, 2)).astype(np.float32)
    outputs = target + rng.normal(0, 0.5, target.shape).astype(np.float32)
    batch = {"target": target, "unit": np.full(500, 3, np.float32)}
    found = measured({"errors": Errors()}, outputs, batch, 128).line
    exact = 3 * target.astype(float), 3 * outputs.astype(float)
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(*exact), rel=1e-6)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(*exact), rel=1e-6)
    assert found["r2"] == pytest.approx(sk.r2_score(*exact), abs=1e-6)


def in_numpy(probabilities, batch):
    return np.asarray(probabilities).max(axis=-1)


def test_what_is_wrong_with_ones_own_metric_is_one_line(data_home, caplog):
    config = composed(*TINY, *data_home)
    config["metrics"] = {"mine": {"_target_": f"{__name__}.in_numpy"}}
    with pytest.raises(UserError, match=r"metrics\.mine: .* use jax\.numpy"):
        Setups().of(config)
    assert monitored(("accuracy", "max"), "off_by_one", None) == ("off_by_one", "min")
    assert "trainer.monitor_mode=max" in caplog.text


@pytest.mark.slow
def test_trials_side_by_side_are_measured_without_their_predictions(tmp_path, data_home):
    """In several padded batches; the table of the test is that of the best weights."""
    config = composed(*TINY, *data_home, "data.eval_batch_size=100")
    setups = Setups()
    trials = [trial_of({**config, "seed": i}, tmp_path / str(i), setups=setups) for i in range(3)]
    for summary, trial in zip(fit(trials, tmp_path / "all"), trials, strict=True):
        (trial.directory / ".hydra").mkdir()  # as the command line writes it
        (trial.directory / ".hydra/config.yaml").write_text(json.dumps(trial.config))
        run = Restored(trial.config, trial.directory, Terminal())
        batches = [(b, np.asarray(b["mask"]) > 0, run.outputs(b)) for b in run.batches("test")]
        label = np.concatenate([np.asarray(b["label"])[real] for b, real, _ in batches])
        p = np.concatenate([np.asarray(p)[real] for _, real, p in batches])
        assert (len(batches), len(p)) == (4, 360)
        for name, value in expected(label, p)[0].items():
            assert summary[f"test/{name}"] == pytest.approx(value, abs=1e-6), name
        pair = summary["test/auroc"], summary["test/average_precision"]
        np.testing.assert_allclose(pair, ranked(label, p), atol=1e-3)
        written = json.loads((trial.directory / "summary.json").read_text())["classes"]
        np.testing.assert_allclose([row["f1"] for row in written], expected(label, p)[1]["f1"])
        assert [row["class"] for row in written] == list(map(str, range(10)))
        assert sum(row["support"] for row in written) == 360
    brief = {name.removeprefix("test/") for name in summary if name.startswith("test/")}
    assert brief - DETAILS == {"loss", "accuracy"}  # what the terminal has room for


class Range(Statistic):
    """The range of the labels."""

    def sums(self, predictions, batch):
        labels = jax.nn.one_hot(batch["label"], predictions.shape[-1])
        return {"counts": jnp.sum(labels * batch["mask"][:, None], axis=0)}

    def scalars(self, sums):
        return {"range": np.array([np.ptp(np.flatnonzero(row)) for row in sums["counts"]])}


def off_by_one(probabilities, batch, *, most: int):
    """A user's metric: the digit is wrong by at most so much."""
    return jnp.abs(probabilities.argmax(-1) - batch["label"]) <= most


def too_many(probabilities, batch):
    return probabilities


def test_metrics_that_a_config_names(tmp_path, data_home):
    config = composed(*TINY, *data_home, "metrics=top_k", "trainer.monitor=off_by_one")
    config["trainer"]["monitor_mode"] = "max"
    config["metrics"] |= {
        "off_by_one": {"_target_": f"{__name__}.off_by_one", "most": 9},
        "labels": {"_target_": f"{__name__}.Range"},
    }
    (summary,) = fit([trial_of(config, tmp_path / "run")], tmp_path)
    assert summary["monitor"] == "val/off_by_one"
    assert (summary["test/off_by_one"], summary["test/range"]) == (1, 9)
    assert summary["test/accuracy"] < summary["test/top_k_accuracy"] < 1


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"x": {"_target_": f"{__name__}.too_many"}}, r"metrics.x: must give one value .*\[128\]"),
        ({"loss": {"_target_": f"{__name__}.off_by_one", "most": 1}}, "metrics.loss: there is a"),
    ],
)
def test_a_metric_that_is_none_is_refused_before_training(node, said, data_home):
    config = composed(*TINY, *data_home, "data.eval_batch_size=128")
    with pytest.raises(Exception, match=said):
        Setups().of({**config, "metrics": node})


def test_the_name_of_a_metric_says_whether_it_should_be_large():
    own = ("accuracy", "max")
    assert monitored(own, None, None) == own
    for name in ("macro_f1", "auroc", "top5_accuracy", "average_precision", "r2", "solved"):
        assert monitored(("loss", "min"), name, None) == (name, "max")
    for name in ("loss", "calibration_error", "rmse", "mae"):
        assert monitored(own, name, None) == (name, "min")
    assert monitored(own, "mine", "max") == ("mine", "max")
