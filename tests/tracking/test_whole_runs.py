"""W&B and whole runs of `run.py`: what arrives, and what of a run depends on it (nothing)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.tracking.jsonl import METRICS, read_history
from experiments.tracking.tracker import Background
from experiments.training.evaluation import Evaluator
from support import ROOT, children_of, lines_of
from wandb_server import reader

OPTIONS = ["model.hidden=[16]", "trainer.epochs=3", "trainer.figures=false", "trainer.log_every=8"]


def record(folder: Path) -> list[dict]:
    """`metrics.jsonl` as W&B has it: what is logged at one step is one event."""
    events: dict[float, dict] = {}
    for event in read_history(folder / METRICS):
        events.setdefault(event["step"], {}).update(event)
    return list(events.values())


@pytest.mark.slow
def test_a_run_arrives_with_all_that_says_how_it_came_about(run_cli, monkeypatch, server, tmp_path):
    monkeypatch.setenv("CLOUD_PASSWORD", "correct horse battery staple")
    folder = tmp_path / "arriving"
    code, error = run_cli("model=lenet5", *OPTIONS[1:], folder=folder)
    assert code == 0, error
    (run,) = server.runs.values()
    assert run.name == "arriving"
    assert run.job_type == "train"
    assert run.tags == ["Classification", "LeNet5", "digits"]
    assert run.notes.startswith("trainer.epochs=3") or "model=lenet5" in run.notes
    assert run.config["optim"]["learning_rate"] == 0.001
    assert run.config["provenance"]["data"]
    assert b"packages" in run.files["provenance.json"]
    assert run.metrics == record(folder)
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("val/loss", "val/accuracy", "epoch"):
        assert run.summary[f"best.{name}"] == summary["best"][name]
    assert run.summary["test/accuracy"] == summary["test/accuracy"]
    defined = {m.get("1") or m["2"]: m for m in run.config["_wandb"]["m"]}
    assert defined["val/*"]["5"] == 1  # drawn over the first one, the epoch
    assert next(iter(defined)) == "epoch"
    everything = json.dumps([run.config, run.summary, run.notes]).encode()
    everything += b"".join(run.files.values())
    everything += b"".join(path.read_bytes() for path in reader.find(folder))
    assert b"correct horse" not in everything
    assert {"requirements.txt", "wandb-metadata.json"} <= set(run.files)


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository")
def test_the_commit_and_the_lock_file_are_recorded(server, tmp_path, data_home):
    command = ["run.py", "debug=fast", "logger=wandb", *data_home, "model.hidden=[8]"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    where = f"hydra.run.dir={tmp_path / 'run'}"
    subprocess.run([sys.executable, *command, where], cwd=ROOT, env=environment, check=True)
    (run,) = server.runs.values()
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()
    assert json.loads(run.files["wandb-metadata.json"])["git"]["commit"] == head
    assert run.files["requirements.lock"] == (ROOT / "requirements.lock").read_bytes()
    assert run.files["code/run.py"] == (ROOT / "run.py").read_bytes()


@pytest.mark.slow
def test_a_model_is_uploaded_and_another_run_starts_from_it(run_cli, server, tmp_path):
    first, options = tmp_path / "first", ["model.hidden=[16]", "trainer.epochs=2"]
    code, error = run_cli(*options, "logger.log_model=true", folder=first)
    assert code == 0, error
    (run,) = server.runs.values()
    assert {"confusion_matrix", "predictions/test"} <= run.history[-1].keys()
    (model,) = [one for one in server.artifacts.values() if one.type == "model"]
    source = f"model.pretrained=wandb:{run.project}/{model.collection}:best"
    code, error = run_cli(*options, "trainer.figures=false", source, folder=tmp_path / "second")
    assert code == 0, error
    assert "loaded 4 of 4 arrays" in error
    assert model.used_by == [name for name in server.runs if name != run.id]

    code, error = run_cli("mode=predict", f"checkpoint={first}", folder=tmp_path / "predicted")
    assert code == 0, error
    assert {"predictions/validation", "predictions/test"} <= run.history[-1].keys()
    code, error = run_cli(*options, f"{source}r", folder=tmp_path / "third")
    assert code == 2
    assert error.splitlines()[-1].startswith(f"error: {source[17:]}r: W&B does not give it")


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_the_same_history(run_cli, monkeypatch, server, tmp_path):
    folder, evaluate, left = tmp_path / "cut", Evaluator.measure, [None]

    def stopped(self, *args):
        if left:
            left.pop()
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "measure", stopped)
        assert run_cli(*OPTIONS, folder=folder)[0] == 75
    (run,) = server.runs.values()
    assert run.exit_code == 1
    assert run.summary["status"] == "interrupted"
    assert run_cli(f"resume={folder}", folder=folder)[0] == 0
    assert list(server.runs.values()) == [run]
    assert run.metrics == record(folder)
    assert (run.exit_code, run.summary["status"]) == (0, "finished")


@pytest.mark.slow
def test_a_client_that_dies_does_not_touch_the_run(run_cli, monkeypatch, client, tmp_path):
    assert run_cli(*OPTIONS, "logger=none", folder=tmp_path / "alone")[0] == 0
    log, killed = Background.log, []

    def logging(self, step, scalars):
        if step == 20:
            assert self.location  # it has started
            killed.extend(children_of(os.getpid()))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        log(self, step, scalars)

    monkeypatch.setattr(Background, "log", logging)
    code, error = run_cli(*OPTIONS, "logger.mode=offline", folder=tmp_path / "bereft")
    assert code == 0, error
    assert killed
    assert "Wandb is dropped from this run" in error
    assert lines_of(tmp_path / "bereft") == lines_of(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_run_leaves_its_history_and_nothing_elsewhere(client, tmp_path, data_home):
    folder, temporary = tmp_path / "killed", tmp_path / "temporary"
    temporary.mkdir()
    options = ["model.hidden=[8]", "trainer.epochs=1000000", "trainer.figures=false", *data_home]
    command = [sys.executable, "run.py", *options, "logger.mode=offline", f"hydra.run.dir={folder}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TMPDIR": str(temporary)}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as run:
        while not (reader.find(folder) and read_history(folder / METRICS)):
            assert run.poll() is None
            time.sleep(0.1)
        logged = len(read_history(folder / METRICS))
        time.sleep(3)  # W&B writes every second
        clients = children_of(run.pid)
        run.kill()
    assert clients
    (path,) = reader.find(folder)
    assert len(reader.read(path).metrics) >= logged
    for _ in range(100):
        alive = [pid for pid in clients if Path(f"/proc/{pid}/exe").exists()]
        if not alive:
            break
        time.sleep(0.1)
    assert not alive
    assert not [path for path in temporary.iterdir() if path.is_dir()]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["from the start", "half-way"])
def test_a_server_that_answers_500_costs_at_most_10_seconds(
    run_cli, monkeypatch, server, tmp_path, when
):
    server.broken = 500 * (when == "from the start")
    log = Background.log

    def logging(self, step, scalars):
        server.broken = server.broken or 500 * (step >= 20)
        log(self, step, scalars)

    monkeypatch.setattr(Background, "log", logging)
    run_cli(*OPTIONS, "logger=none", folder=tmp_path / "alone")  # compiles
    began = time.monotonic()
    run_cli(*OPTIONS, "logger.mode=offline", folder=tmp_path / "offline")
    offline = time.monotonic() - began
    code, error = run_cli(*OPTIONS, folder=tmp_path / "run")
    assert code == 0, error
    assert time.monotonic() - began - 2 * offline < 10
    assert "wandb sync" in error or "offline" in error
    assert lines_of(tmp_path / "run") == lines_of(tmp_path / "alone")
    local = map(reader.read, reader.find(tmp_path / "run"))
    assert record(tmp_path / "run") in [run.metrics for run in local]
