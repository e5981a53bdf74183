"""What W&B calls a run, by the config and the environment, and what it refuses."""

import json

import pytest

from experiments.errors import UserError
from experiments.tracking.wandb import STATE, Wandb
from experiments.tracking.wandb_names import flatten, tags_of
from wandb_server import reader

FROM_OUTSIDE = {
    "WANDB_PROJECT": "outside",
    "WANDB_ENTITY": "team",
    "WANDB_NAME": "named",
    "WANDB_RUN_GROUP": "grouped",
    "WANDB_TAGS": "a,b",
    "WANDB_RUN_ID": "given",
}


def offline(run, status="finished", **arguments):
    """What an offline run of no steps wrote."""
    before = set(reader.find(run.directory))
    tracker = Wandb(mode="offline", **arguments)
    tracker.start(run)
    tracker.finish({}, status)
    (path,) = set(reader.find(run.directory)) - before
    return reader.read(path)


def test_the_environment_names_what_the_config_leaves_open(client, run_info, monkeypatch):
    for name, value in FROM_OUTSIDE.items():
        monkeypatch.setenv(name, value)
    run = offline(run_info())
    assert (run.project, run.name, run.group, run.tags) == (
        "outside",
        "named",
        "grouped",
        ["a", "b"],
    )
    assert run.id == "given"
    second = run_info().directory.parent / "second"
    second.mkdir()
    other = offline(run_info(directory=second), project="inside", name="n", group="g", tags=["c"])
    assert (other.project, other.name, other.group, other.tags) == ("inside", "n", "g", ["c"])
    assert other.id != "given"  # it is the id of one run
    for name in FROM_OUTSIDE:  # as of a job that is requeued elsewhere
        monkeypatch.delenv(name, raising=False)
    again = offline(run_info(start_step=1))
    assert (again.id, again.project) == ("given", "outside")
    known = json.loads((run_info().directory / STATE).read_text())
    assert (known["id"], known["project"], known["entity"]) == ("given", "outside", "team")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WANDB_MODE", "ofline", "WANDB_MODE=ofline: one of online, offline, disabled; did you"),
        ("WANDB_PROJECT", "a/b", "W&B takes no / in its project, as in 'a/b'"),
        ("WANDB_PROJECT", "a" * 129, "at most 128 characters in its project"),
        ("WANDB_NAME", "a" * 129, "at most 128 characters in its name"),
        ("WANDB_TAGS", "short," + "a" * 65, "1 to 64 characters in a tag"),
        ("WANDB_RUN_ID", "a/b", "W&B takes no / in its WANDB_RUN_ID"),
    ],
)
def test_what_wandb_would_refuse_is_refused_before(client, monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        Wandb()
    assert said in str(error.value)


@pytest.mark.parametrize("arguments", [[], ["-m", "optim.learning_rate=0.1,0.2"]])
def test_nothing_is_trained_under_a_name_that_wandb_would_refuse(
    run_cli, client, tmp_path, arguments
):
    place = [f"study={tmp_path / 'study'}", "workers=1"] if arguments else []
    code, error = run_cli(*arguments, *place, "logger.project=a/b")
    assert code == 2
    assert "W&B takes no / in its project, as in 'a/b'" in error
    assert not [*tmp_path.rglob("metrics.jsonl"), *tmp_path.rglob("study.yaml")]


def test_names_of_our_own_are_never_too_long():
    config = {"model": {"_target_": f"m.{'A' * 70}"}, "data": {"name": "d" * 70}}
    assert [len(tag) for tag in tags_of(config)] == [64, 64]


def test_config_is_flat_and_holds_no_secret():
    config = {
        "optim": {"learning_rate": 1e-3, "betas": [0.9, 0.99]},
        "data": {"api_key": "x", "pad_token": 0, "hub": {"auth_token": "x", "password": "x"}},
    }
    assert flatten(config) == {
        "optim.learning_rate": 1e-3,
        "optim.betas": [0.9, 0.99],
        "data.pad_token": 0,
    }
