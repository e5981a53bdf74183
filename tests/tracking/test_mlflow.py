"""The MLflow tracker with the real client and a database file, and with servers that fail."""

import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.tracking import provenance
from experiments.tracking.jsonl import METRICS, SUMMARY, JsonLines, read_history
from experiments.tracking.mlflow import STATE, Mlflow
from experiments.tracking.tracker import Background, Trackers

pytestmark = pytest.mark.skipif(find_spec("mlflow") is None, reason="needs the extra mlflow")


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> None:
    """Where artifacts go by default."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def client(uri):
    import mlflow  # takes a second to import, in each process that runs tests

    return mlflow.MlflowClient(uri)


def steps(first: int, last: int) -> Iterator[tuple[int, dict[str, float]]]:
    for step in range(first, last + 1):
        yield step, {"epoch": step / 10, "train/loss": 2.3 / step}


def started(run, uri, **arguments) -> Trackers:
    trackers = Trackers([JsonLines(), Background(Mlflow(uri, "digits", **arguments))])
    trackers.start(run)
    return trackers


def train(run, uri, first=1, last=40, status="finished", **arguments) -> None:
    trackers = started(run, uri, **arguments)
    for step, event in steps(first, last):
        trackers.log(step, event)
    trackers.finish({"best": {"val/accuracy": 0.9}, "step": last}, status)


def id_of(run) -> str:
    return json.loads((run.directory / STATE).read_text())["id"]


def history(client, run, name: str = "train/loss") -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client.get_metric_history(id_of(run), name))


def test_a_run_arrives(uri, client, run_info):
    run = run_info()
    provenance.record(run.directory, step=0, data="f00d", devices="CPU")
    picture = run.directory / "confusion_matrix.png"
    Figure(figsize=(1, 1)).savefig(picture)
    (run.directory / "checkpoints").mkdir()
    (run.directory / "checkpoints" / "weights").write_text("weights")
    trackers = started(run, uri, group="study", tags={"who": "me"}, notes="why", log_model=True)
    assert trackers.locations == {"mlflow": f"mlflow ui --backend-store-uri {uri}"}
    for step, event in steps(1, 40):
        trackers.log(step, event)
    trackers.log(40, {"test/accuracy": 0.8, "odd name*": float("nan")})
    trackers.figure(40, "confusion_matrix", picture)
    trackers.predictions(40, "predictions/test", {"label": np.array(["a", "b"])})
    trackers.model(run.directory / "checkpoints")
    trackers.finish({"best": {"val/accuracy": 0.9}, "step": 40}, "finished")

    found = client.get_run(id_of(run))
    assert found.info.run_name == run.name
    assert found.info.status == "FINISHED"
    assert found.data.params == {"optim.learning_rate": "0.001", "seed": "0"}
    assert found.data.metrics["best.val/accuracy"] == 0.9
    assert found.data.metrics["test/accuracy"] == 0.8
    assert np.isnan(found.data.metrics["odd name_"])
    assert found.data.tags.items() >= {"group": "study", "who": "me", "data": "f00d"}.items()
    losses = [(e["step"], e["train/loss"]) for e in read_history(run.directory / METRICS)[:-1]]
    assert history(client, run) == losses
    files = {
        one.path
        for folder in (None, "figures", "predictions", "checkpoints")
        for one in client.list_artifacts(id_of(run), folder)
    }
    assert {"provenance.json", "figures/confusion_matrix.png"} <= files
    assert {"predictions/test.json", "checkpoints/weights"} <= files
    assert "mlflow" in json.loads((run.directory / SUMMARY).read_text())
    assert sys.modules["mlflow"].active_run() is None


@pytest.mark.parametrize(
    ("status", "shown"),
    [("interrupted", "KILLED"), ("diverged", "FAILED"), ("stopped_early", "FINISHED")],
)
def test_how_a_run_ended_is_its_status(uri, client, run_info, status, shown):
    run = run_info()
    train(run, uri, last=2, status=status)
    assert client.get_run(id_of(run)).info.status == shown


def test_trials_side_by_side_stay_apart(uri, client, run_info, tmp_path):
    runs = [run_info(directory=tmp_path / name, name=name) for name in ("one", "two", "three")]
    trackers = []
    for run in runs:
        run.directory.mkdir()
        trackers.append(started(run, uri))
    for step in range(1, 6):
        for number, one in enumerate(trackers):
            one.log(step, {"epoch": step, "train/loss": number})
    for one in trackers:
        one.finish({}, "finished")
    assert len({id_of(run) for run in runs}) == 3
    for number, run in enumerate(runs):
        assert history(client, run) == [(step, number) for step in range(1, 6)]


def test_a_resumed_run_goes_on_without_gaps_or_repeats(uri, client, run_info):
    run = run_info()
    train(run, uri, last=25, status="interrupted")
    first = id_of(run)
    resumed = run_info(start_step=20)
    train(resumed, uri, first=21)
    assert id_of(run) == first
    assert history(client, run) == [(step, event["train/loss"]) for step, event in steps(1, 40)]
    assert client.get_run(first).info.status == "FINISHED"


def test_a_server_that_fails_ends_no_run(run_info, caplog):
    class Broken(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(500)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Broken)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    run, began = run_info(), time.monotonic()
    train(run, f"http://127.0.0.1:{server.server_address[1]}")
    server.shutdown()
    server.server_close()
    assert time.monotonic() - began < 20
    assert len(read_history(run.directory / METRICS)) == 40
    said = [r.getMessage() for r in caplog.records if r.name.startswith("experiments")]
    assert sum("Mlflow is dropped from this run" in message for message in said) == 1


def test_a_server_that_is_not_there_costs_little(run_info, caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run, began = run_info(), time.monotonic()
    with caplog.at_level(logging.WARNING):
        train(run, f"http://127.0.0.1:{port}")
    assert time.monotonic() - began < 20
    assert len(read_history(run.directory / METRICS)) == 40
