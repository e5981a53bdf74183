"""MLflow, https://mlflow.org: a server, or a database file here.

The client is imported only by a run that uses it. Each run has a client of its own and none is the
process's active one, so that trials side by side stay apart.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import UserError
from experiments.tracking import provenance
from experiments.tracking.jsonl import METRICS, read_history, read_mapping, write_json
from experiments.tracking.log_file import LOG
from experiments.tracking.tracker import SUCCESS, RunInfo, Tracker
from experiments.tracking.wandb_names import flatten

STATE = "mlflow_run.json"  # in the run folder: under which id every sitting records the run
PARAMETERS, VALUES = 100, 1000  # most in one request
LONGEST = 500  # characters of a parameter
UNNAMEABLE = re.compile(r"[^\w\-./ :]")  # in the name of a metric or a parameter
ENVIRONMENT = {  # of the client, where the user says nothing else
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # else a dead server costs minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}

_opening = threading.Lock()  # the first run makes the tables of a database, and the experiment


class Mlflow(Tracker):
    """One MLflow run; `conf/logger/mlflow.yaml` describes the arguments.

    After an error of the client or its server it is called no more.

    Raises:
        UserError: MLflow is not installed.
    """

    slow_to_start = True

    def __init__(
        self,
        uri: str | None = None,
        experiment: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: Mapping[str, Any] | None = None,
        notes: str | None = None,
        log_model: bool = False,
    ):
        if find_spec("mlflow") is None:
            raise UserError("logger=mlflow needs the package: pip install mlflow-skinny")
        self.uri, self.name, self.group, self.notes = uri, name, group, notes
        self.experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "experiments"
        self.tags, self.log_model = dict(tags or {}), log_model
        self._client: Any = None
        self._next_step = 0

    @property
    def takes_model(self) -> bool:  # type: ignore[override]
        return self.log_model

    @property
    def location(self) -> str | None:
        if self._client is None:
            return None
        if (uri := self._client.tracking_uri).startswith("http"):
            return f"{uri}/#/experiments/{self._experiment}/runs/{self._id}"
        return f"mlflow ui --backend-store-uri {uri}"

    def start(self, run: RunInfo) -> None:
        self._directory, state = run.directory, run.directory / STATE
        with _opening:
            client = _client(self.uri)
            if state.is_file():
                known = read_mapping(
                    state, advice="delete it: MLflow then has the run as a new one"
                )
                self._id, self._experiment = known["id"], known["experiment"]
                client.update_run(self._id, status="RUNNING")
                events = client.get_metric_history(self._id, "epoch")
                self._next_step = max((event.step for event in events), default=-1) + 1
            else:
                self._experiment = _experiment(client, self.experiment)
                name = self.name or run.name
                made = client.create_run(self._experiment, tags=self._tags(run), run_name=name)
                self._id = made.info.run_id
                write_json(state, {"id": self._id, "experiment": self._experiment})
                _log_parameters(client, self._id, run.config)
        self._client = client
        for path in (provenance.FILE, provenance.PATCHES):
            if (run.directory / path).is_dir():
                self._call("log_artifacts", str(run.directory / path), path)
            elif (run.directory / path).is_file():
                self._call("log_artifact", str(run.directory / path))
        # of the lines before the checkpoint those that never arrived
        for event in read_history(run.directory / METRICS):
            if event["step"] <= (run.start_step or 0):
                self.log(int(event.pop("step")), event)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        # a resumed run repeats the steps after its checkpoint; the test ends a run
        tested = any(name.startswith("test/") for name in scalars)
        if self._client is not None and (step >= self._next_step or tested):
            self._log_metrics(scalars, step)

    def figure(self, step: int, name: str, path: Path) -> None:
        if self._client is not None:
            self._call("log_artifact", str(path), "figures")

    def predictions(self, step: int, name: str, columns: Mapping[str, np.ndarray]) -> None:
        if self._client is not None:
            table = {key: np.asarray(column).tolist() for key, column in columns.items()}
            self._call("log_table", table, f"{name}.json")

    def model(self, path: Path) -> None:
        if self._client is not None and self.log_model:
            self._call("log_artifacts", str(path), "checkpoints")

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        if self._client is None:
            return
        kind = bool, int, float
        numbers = {k: v for k, v in flatten(summary).items() if isinstance(v, kind)}
        step = numbers.pop("step", 0)
        self._log_metrics(numbers, int(step))
        self._call("set_tag", "status", status)
        if (log := self._directory / LOG).is_file():
            self._call("log_artifact", str(log))
        ended = "KILLED" if status == "interrupted" else "FAILED"
        self._call("set_terminated", "FINISHED" if status in SUCCESS else ended)
        self._client = None

    def _tags(self, run: RunInfo) -> dict[str, str]:
        """Return the tags of a new run, of which MLflow shows some in places of their own."""
        tags = {"mlflow.note.content": self.notes, "group": self.group, **self.tags}
        if starts := provenance.read_starts(run.directory):
            said = provenance.in_brief(starts[-1])
            tags |= {"mlflow.source.name": said.pop("command"), **said}
            if code := starts[-1]["code"]:
                tags["mlflow.source.git.commit"] = code[0]["commit"]
        return {name: str(value) for name, value in tags.items() if value is not None}

    def _log_metrics(self, scalars: Mapping[str, Any], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(_name(k), float(v), now, step) for k, v in scalars.items()]
        for first in range(0, len(metrics), VALUES):
            self._call("log_batch", metrics=metrics[first : first + VALUES])

    def _call(self, method: str, *arguments: Any, **named: Any) -> None:
        """Call the client for this run; it stays put aside if that raises an error."""
        client, self._client = self._client, None
        getattr(client, method)(self._id, *arguments, **named)
        self._client = client


def _client(uri: str | None) -> Any:
    """Return a client, which says nothing of its own."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)


def _experiment(client: Any, name: str) -> str:
    """Return the id of an experiment, made where there is none; another process may do the same."""
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(name)) is not None:
        return found.experiment_id
    try:
        return client.create_experiment(name)
    except MlflowException:
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return found.experiment_id


def _log_parameters(client: Any, run: str, config: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    values = [Param(_name(k), str(v)[:LONGEST]) for k, v in flatten(config).items()]
    for first in range(0, len(values), PARAMETERS):
        client.log_batch(run, params=values[first : first + PARAMETERS])


def _name(name: str) -> str:
    return UNNAMEABLE.sub("_", name)
