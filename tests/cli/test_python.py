"""From Python all is as on the command line: configs, runs, their record and their predictions."""

import csv
import json
import logging
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from experiments import compose, load, train
from experiments.core import trust
from experiments.errors import UserError
from support import ROOT, TINY, lines_of

QUIET = [*TINY, 'trainer.compilation_cache=""']


@pytest.fixture(autouse=True)
def trusted():
    """What tests trust, also after one of these."""
    yield
    trust.allow([ROOT / "conf"], [])


@pytest.fixture(scope="module")
def run(data_home, tmp_path_factory):
    """A run trained from Python."""
    config = compose(*QUIET, *data_home, "optim.learning_rate=1e-2")
    return train(config, tmp_path_factory.mktemp("python") / "run")


@pytest.fixture
def images(run):
    return run.splits.test.arrays["image"]


def test_a_run_from_python_is_that_of_the_command_line(run, run_cli, tmp_path):
    assert run.summary["status"] == "finished"
    code, errors = run_cli(*TINY, "optim.learning_rate=1e-2", folder=tmp_path / "run")
    assert (code, lines_of(tmp_path / "run")) == (0, lines_of(run.folder)), errors
    frame = run.metrics
    assert len(frame) == len(lines_of(run.folder))
    assert frame["val/accuracy"].dropna().iloc[-1] == run.summary["val/accuracy"]

    folder = tmp_path / "predicted"
    code, errors = run_cli("mode=predict", f"checkpoint={run.folder}", folder=folder)
    assert code == 0, errors
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    loaded = load(run.folder)
    for split in ("validation", "test"):
        own = [row for row in rows if row["split"] == split]
        outputs, names = loaded.predict(getattr(run.splits, split).arrays["image"])
        assert [row["predicted"] for row in own] == names.tolist()
        columns = [f"p_{name}" for name in loaded.class_names]
        table = np.array([[row[column] for column in columns] for row in own], np.float32)
        np.testing.assert_array_equal(table, outputs)


def test_the_model_and_the_parameters_are_those_of_the_best_epoch(run, images):
    shapes = {name: array.shape for name, array in run.params.items()}
    assert (shapes["hidden.0.kernel"], shapes["output.bias"], len(shapes)) == ((64, 8), (10,), 4)
    outputs = jax.nn.softmax(run.model(run.prepare(images[:5])))
    np.testing.assert_allclose(outputs, run.predict(images[:5]).outputs, rtol=1e-4, atol=1e-6)


def test_a_run_goes_on_and_leaves_nothing_behind(run, data_home, tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    logged, level = list(logging.root.handlers), logging.getLogger("experiments").level
    config = compose(*QUIET, *data_home, "optim.learning_rate=1e-2", "trainer.epochs=2")
    first = train(config, tmp_path / "run")
    with pytest.raises(UserError, match="holds a run already"):
        train(config, first.folder)
    config.trainer.epochs = 3
    with pytest.raises(AttributeError, match="epoch"):
        config.trainer.epoch = 3
    found = []  # in a thread no signal can be taken
    go_on = threading.Thread(target=lambda: found.append(train(config, first.folder, resume=True)))
    go_on.start()
    go_on.join()
    assert lines_of(found[0].folder)[-1]["test/loss"] == lines_of(run.folder)[-1]["test/loss"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (logging.root.handlers, logging.getLogger("experiments").level) == (logged, level)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images[0], r"these inputs are uint8 \[8, 8, 1\]; .* uint8 \[N, 8, 8, 1\]"),
        (lambda images: images[:0], r"these inputs are uint8 \[0, 8, 8, 1\]"),
        (lambda images: images / 255, "hold values that are no uint8, such as 1"),
    ],
)
def test_inputs_of_another_kind_are_refused(run, images, change, message):
    with pytest.raises(UserError, match=message):
        run.predict(change(images))
    assert len(run.predict(images[:3].astype(int)).names) == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=lenet6", "model=lenet6: there is no such choice; did you mean 'lenet5'"),
        ("experiment=lesson/xorr", "experiment=lesson/xorr: .* did you mean 'lesson/xor'"),
        ("optim.learnin_rate=1", "no such key; did you mean 'optim.learning_rate'"),
        ("optim=adam,sgd", "to search over several values say -m"),
    ],
)
def test_what_is_misspelt_is_said_with_the_nearest_name(override, message):
    with pytest.raises(UserError, match=message) as raised:
        compose(override)
    assert raised.value.__cause__ is raised.value.__context__ is None


def test_code_that_a_run_folder_names_is_not_run_unless_it_is_trusted(run, tmp_path):
    folder = tmp_path / "sent"
    (folder / ".hydra").mkdir(parents=True)
    text = (run.folder / ".hydra" / "config.yaml").read_text()
    stranger = "callbacks: {mine: {_target_: stranger.Watch}}"
    (folder / ".hydra" / "config.yaml").write_text(text.replace("callbacks: {}", stranger))
    with pytest.raises(UserError, match=r"callbacks.mine._target_=stranger.Watch: .* may not name"):
        load(folder)
    (tmp_path / "stranger.py").write_text("raise RuntimeError('it is run')")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(UserError, match="it is run"):
            load(folder, allow=["stranger"])
    finally:
        sys.path.remove(str(tmp_path))
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "none")


def test_to_import_the_package_is_cheap():
    said = (
        "import sys, experiments; print([m for m in ('jax', 'numpy', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
