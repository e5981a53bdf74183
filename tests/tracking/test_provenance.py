import shutil
import subprocess
from pathlib import Path

import pytest

from experiments.errors import UserError
from experiments.machine import CONFIG
from experiments.tracking import provenance

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=me", "-c", "user.email=me@example.com"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """The working directory, a repository with one commit."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "model.py").write_text("width = 8\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    monkeypatch.chdir(folder)
    yield folder
    provenance._begun.cache_clear()


def recorded(folder: Path) -> tuple[dict, dict]:
    """An entry that is recorded now, and its part about the working directory's repository."""
    folder.mkdir(exist_ok=True)
    provenance._begun.cache_clear()  # as in another process
    provenance.record(folder, step=0, data="f00d", devices="CPU")
    start = provenance.read_starts(folder)[-1]
    return start, next(one for one in start["code"] if one["folder"] == str(Path.cwd()))


def test_a_start_says_commit_changes_and_surroundings(repository, tmp_path):
    run = tmp_path / "run"
    start, clean = recorded(run)
    assert clean["commit"] == git(repository, "rev-parse", "HEAD")
    assert (clean["changed"], clean["patch"], clean["untracked"]) == ([], None, [])
    assert start["data"] == "f00d"
    assert start["packages"]["jax"]
    assert {"command", "host", "processor", "devices", "python"} <= start.keys()

    (repository / "model.py").write_text("width = 16\n")
    (repository / "new model.py").write_text("depth = 2\n")
    _, dirty = recorded(run)
    assert (dirty["changed"], dirty["untracked"]) == (["model.py"], ["new model.py"])
    git(repository, "stash")
    git(repository, "apply", str(run / dirty["patch"]))
    assert (repository / "model.py").read_text() == "width = 16\n"
    assert len(provenance.read_starts(run)) == 2  # as of a run that is resumed


def test_the_package_counts_too_where_it_is_a_checkout(repository, tmp_path):
    if not (CONFIG.parent / ".git").exists():
        pytest.skip("needs the repository")
    start, _ = recorded(tmp_path / "run")
    assert str(CONFIG.parent) in [one["folder"] for one in start["code"]]


def test_changes_that_are_too_large_are_named_alone(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "MOST", 1000)
    (repository / "model.py").write_text("width = 16\n" * 1000)
    _, code = recorded(tmp_path / "run")
    assert (code["changed"], code["patch"]) == (["model.py"], None)
    assert not (tmp_path / "run" / "patches").exists()


def test_no_secret_is_recorded(repository, tmp_path, monkeypatch):
    hidden = "correct-horse"
    monkeypatch.setenv("EXPERIMENTS_COMMAND", "")
    monkeypatch.setattr(
        "sys.orig_argv", ["run.py", f"storage=x://me:{hidden}@h", f"api_key={hidden}"]
    )
    monkeypatch.setenv("TFDS_PASSWORD", hidden)
    monkeypatch.setenv("WANDB_API_KEY", hidden)
    monkeypatch.setenv("JAX_PROXY", f"http://me:{hidden}@host")
    start, _ = recorded(tmp_path / "run")
    assert start["environment"]["JAX_PROXY"] == "http://me:***@host"
    assert "api_key=***" in start["command"]
    assert hidden not in (tmp_path / "run" / provenance.FILE).read_text()


def test_git_is_asked_once_for_all_trials_of_a_process(repository, tmp_path, monkeypatch):
    provenance._begun.cache_clear()
    asked, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: asked.append(a) or popen(*a, **k))
    for trial in range(3):
        (tmp_path / str(trial)).mkdir()
        provenance.record(tmp_path / str(trial), step=0, data="", devices="CPU")
        if trial == 0:
            first = len(asked)
    assert 0 < len(asked) == first


def test_a_folder_without_git_has_a_record_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    provenance._begun.cache_clear()
    provenance.record(tmp_path, step=0, data="", devices="CPU")
    (start,) = provenance.read_starts(tmp_path)
    assert start["code"] == []
    provenance._begun.cache_clear()


@pytest.mark.parametrize("content", ["{", "[]", '{"starts": 3}', '{"starts": [{}]}'])
def test_a_damaged_record_is_said_in_two_lines(tmp_path, content):
    (tmp_path / provenance.FILE).write_text(content)
    with pytest.raises(UserError, match=r"provenance.json is damaged.*\ndelete it"):
        provenance.read_starts(tmp_path)


def test_an_older_run_has_no_starts(tmp_path):
    assert provenance.read_starts(tmp_path) == []
