"""Damaged files of a study and of a sweep end in one or two plain lines, whoever reads them."""

import re

import pytest

from experiments.cli.sweep import sweep
from experiments.commands import report
from experiments.errors import UserError
from experiments.search import agents, local, worker
from experiments.search.actions import launch
from support import ROOT

CONFIG = ROOT / "conf"
PLAN = {
    "empty": (lambda text: b"", "is damaged: it is empty"),
    "half": (lambda text: text[: len(text) // 2], "is damaged: "),
    "list": (lambda text: b"- a\n- b\n", "is damaged: these are no keys with values"),
    "binary": (lambda text: bytes(range(256)), "is damaged: "),
    "control": (lambda text: text + b"\0", "is damaged: "),
    "lacks": (lambda text: text.replace(b"n_trials", b"n"), "is damaged: it lacks n_trials"),
}


def commands(folder):
    """Every command that reads a study."""
    for action in ("status", "resume", "cancel", "worker"):
        yield lambda action=action: sweep([f"{action}={folder}"], CONFIG)
    yield lambda: report.write_report(folder, CONFIG)
    yield lambda: report.write_comparison([folder, folder], CONFIG, folder)


@pytest.mark.parametrize("kind", PLAN)
def test_a_damaged_plan_is_named(make_study, kind):
    folder = make_study().folder
    path, (damage, words) = folder / "study.yaml", PLAN[kind]
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    for command in commands(folder):
        with pytest.raises(UserError, match=re.escape(f"{path} {words}")):
            command()
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("line", [b"garbage", b"\xff\0\xfe", b"[1]", b'{"op_code": 5}', b'{"op_'])
def test_a_damaged_line_of_the_journal_is_named(make_study, line):
    folder = make_study().folder
    path = folder / "journal.log"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[2:]]) + b"\n")
    for command in commands(folder):
        if command.__defaults__ != ("cancel",):  # which needs no journal
            with pytest.raises(UserError, match=re.escape(f"{path}:3: this line is damaged")):
                command()


def test_a_worker_waits_for_no_trial_that_the_journal_has_lost(make_study):
    folder = make_study(n_trials=3).folder
    path = folder / "journal.log"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="holds 2 of its 3 trials"):
        sweep([f"worker={folder}"], CONFIG)


@pytest.mark.slow
def test_a_winner_that_cannot_be_tested_is_said(make_study, monkeypatch):
    study = make_study(n_trials=1)
    with monkeypatch.context() as patch:
        patch.setattr(worker.Worker, "_conclude", lambda self: None)
        worker.work(study.folder, CONFIG)
    summary = study.folder_of(0) / "summary.json"
    whole = summary.read_bytes()
    summary.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"summary.json is damaged: .*\nrestore it from a copy"):
        launch(study, {}, local.Workers(1))
    summary.write_bytes(whole)
    launch(study, {}, local.Workers(1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run_cap: 2\n# caf\xe9\n".encode("latin-1"), "2: this is not UTF-8"),
        (b"run_cap: 2\nname: a\x07b\n", "2: YAML takes no character U\\+0007"),
        (b"run_cap: 2020-13-45\n", " this is no YAML: month must be in 1..12"),
        (b"[" * 5000, " this is no YAML: "),
    ],
)
def test_a_sweep_file_that_cannot_be_read_is_named(tmp_path, text, words):
    path = tmp_path / "sweep.yaml"
    path.write_bytes(text)
    with pytest.raises(UserError, match=f"{path}:{words}"):
        sweep([str(path)], CONFIG)
    with pytest.raises(UserError, match=f"{path}:{words}"):
        agents.begin(path, [], {}, CONFIG, tmp_path / "study")
