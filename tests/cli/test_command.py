"""The command `experiments`, and what a package of it holds."""

import dataclasses
import zipfile

import pytest

from experiments.cli.command import main
from experiments.cli.search_keys import SEARCH_KEYS
from experiments.search.plan import Plan
from support import ROOT


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 0, "experiments run model=lenet5"),
        (["--help"], 0, "experiments sweep my.yaml"),
        (["sweep", "--help"], 0, "experiments sweep resume=<study folder>"),
        (["sweep", "--help"], 0, "early_terminate.min_epochs=3"),
        (["report", "-h"], 0, "experiments report <study folder>"),
        (["rnu"], 2, "did you mean 'run'?"),
        (["train"], 2, "one of run, sweep, report"),
        (["sweep"], 2, "nothing given: name a sweep file"),
    ],
)
def test_the_command_says_what_there_is(monkeypatch, capsys, arguments, code, words):
    monkeypatch.setattr("experiments.machine.end_on_signals", dict)
    monkeypatch.setattr("sys.argv", ["experiments", *arguments])
    assert main() == code
    printed = capsys.readouterr()
    assert words in (printed.err if code else printed.out)


def test_what_a_plan_holds_is_a_key_of_a_search():
    """All but what follows from the command line as a whole."""
    derived = {"parameters", "overrides", "seed", "config_dir", "directory"}
    assert {one.name for one in dataclasses.fields(Plan)} - derived <= set(SEARCH_KEYS)


def test_a_wheel_holds_the_config_files(tmp_path):
    pytest.importorskip("hatchling")
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    held = zipfile.ZipFile(wheel).namelist()
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"experiments/{name}" for name in files if "local" not in name} <= set(held)
    assert {"experiments/ops/lstm.c", "hydra_plugins/experiments_sweeper.py"} <= set(held)
    assert "experiments/py.typed" in held  # that it says its types
    (entry,) = (name for name in held if name.endswith("entry_points.txt"))
    assert (
        "experiments = experiments.cli.command:main" in zipfile.ZipFile(wheel).read(entry).decode()
    )
