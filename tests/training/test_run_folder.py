"""The record of an earlier run in its folder, also one of an older version."""

import logging
import sys

import pytest
import yaml

from experiments.errors import UserError
from experiments.training.run_folder import (
    exclusive,
    run_folder,
    said_again,
    saved_steps,
    split_source,
)
from experiments.training.saving.config import saved_config, up_to_date
from support import composed


@pytest.fixture
def folder(tmp_path):
    """A run folder with checkpoints of the steps 5 and 40, and one that is being written."""
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("name: x")
    for name in ("40", "5", "60.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    return tmp_path


def test_a_source_is_a_run_or_one_of_its_checkpoints(folder):
    assert saved_steps(folder) == [5, 40]
    assert split_source(folder) == (folder, None)
    assert split_source(folder / "checkpoints" / "5") == (folder, 5)
    with pytest.raises(UserError, match="does not exist; there are 5, 40"):
        split_source(folder / "checkpoints" / "6")
    with pytest.raises(UserError, match="is not the folder of a run"):
        split_source(folder / "checkpoints")


def test_the_lock_of_a_folder_has_one_holder(folder):
    with exclusive(folder), pytest.raises(UserError, match="another process"), exclusive(folder):
        pass
    with exclusive(folder):
        pass


def test_a_folder_is_free_until_something_was_trained_there(tmp_path):
    def begin(name, **options):
        with run_folder(tmp_path / "run", {"config": {"name": name}}, **options):
            assert (tmp_path / "run" / ".hydra" / "config.yaml").read_text() == f"name: {wanted}\n"

    wanted = "'1e3'"  # in quotes, or OmegaConf reads a number
    begin("1e3")
    wanted = "b"  # it did not get beyond its config
    begin("b")
    (tmp_path / "run" / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="holds a run already"):
        begin("c")
    begin("c", used="continued")
    wanted = "c"
    begin("c", used="cleared")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


GRAMMAR = ["1e3", "'1e3'", "007", "null", "'a: b # c'", "[1,a]", "int(3.5)", "${seed}", ""]


@pytest.mark.parametrize("text", GRAMMAR)
def test_overrides_of_a_run_are_read_as_those_of_a_new_one(folder, text):
    config = composed() | {"name": "x"}
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    found = saved_config(folder, [f"freeze={text}"]).freeze
    assert found == composed(f"freeze={text}")["freeze"]


def test_an_older_config_is_brought_up_to_date(caplog):
    saved = {
        "seed": 7,
        "model": {"_target_": "experiments.lenet.LeNet5", "width": 3, "gone": 1},
        "data": {"_target_": "experiments.data.text.Text", "augment": {"a": {"_target_": "x.y"}}},
        "optim": {"_target_": "experiments.optim.optimizer", "rule": "experiments.optim.sgd"},
        "callbacks": {"own": {"_target_": "mine.Watch"}},
        "metrics": {"own": {"_target_": "mine.score"}},
    }
    today = {
        "seed": 0,
        "new": None,
        "callbacks": {},
        "model": {"_target_": "experiments.models.lenet.LeNet5", "width": 1, "depth": 2},
        "data": {"_target_": "experiments.data.digits.Digits", "augment": {}},
        "optim": {"_target_": "experiments.core.optim.optimizer", "rule": "optax.scale_by_adam"},
    }
    with caplog.at_level(logging.WARNING):
        found = up_to_date(saved, today)
    assert found == {
        "seed": 7,
        "new": None,
        "model": {"_target_": "experiments.models.lenet.LeNet5", "width": 3, "depth": 2},
        "data": {"_target_": "experiments.data.text.Text", "augment": {}},
        "optim": {"_target_": "experiments.core.optim.optimizer", "rule": "optax.scale_by_adam"},
        "callbacks": {"own": {"_target_": "mine.Watch"}},
        "metrics": {"own": {"_target_": "mine.score"}},
    }
    assert "model.gone=1, data.augment.a=" in caplog.text


@pytest.mark.parametrize(
    ("command", "path", "value", "words"),
    [
        ("mode=evaluate checkpoint=", ("model", "_target_"), "os.system", "allow=[os]"),
        ("mode=sample checkpoint=", ("optim", "rule"), "jax.numpy.load", "may not name this"),
        ("resume=", ("data", "augment", "_target_"), "subprocess.run", "allow=[subprocess]"),
        ("resume=", ("name",), "${oc.env:HOME}", "may not read this"),
        ("resume=", ("model", "_target_"), "optax.gone", "has no 'gone'"),
    ],
)
def test_a_folder_of_others_runs_nothing(run_cli, tmp_path, command, path, value, words):
    config, folder = composed(), tmp_path / "sent" / ".hydra"
    *groups, key = path
    group = config
    for name in groups:
        group = group[name]
    group[key] = value
    group["command"] = f"touch {tmp_path}/ran"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    callback = {"_target_": "pathlib.Path.touch", "self": f"{tmp_path}/ran"}
    own = {"callbacks": {"x": callback}, "launcher": callback, "runtime": {"choices": {}}}
    own["runtime"]["choices"]["hydra.searchpath"] = "[pkg://antigravity]"
    (folder / "hydra.yaml").write_text(yaml.safe_dump({"hydra": own}))
    code, error = run_cli(*f"{command}{folder.parent}".split())
    assert code == 2
    assert words in error
    assert len(error[error.index("error:") :].splitlines()) == 1
    assert not (tmp_path / "ran").exists()
    assert "antigravity" not in sys.modules


def test_a_run_that_goes_on_trusts_what_its_command_did():
    kept = ["allow=[mine]", "trainer.compilation_cache=/x"]
    assert said_again([*kept, "optim=sgd"]) == kept


@pytest.mark.parametrize("name", [".lock", "run.log", "metrics.jsonl"])
def test_nothing_is_written_through_a_link(tmp_path, name):
    mine, sent = tmp_path / "mine", tmp_path / "sent"
    mine.write_text("precious")
    sent.mkdir()
    (sent / name).symlink_to(mine)
    with pytest.raises((UserError, OSError), match=name), run_folder(sent, {}):
        pass
    assert mine.read_text() == "precious"
