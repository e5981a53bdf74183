"""Weights & Biases, https://docs.wandb.ai: online, offline or disabled.

The client is imported only by a run that uses it. Its files lie in the run folder, and a server
that is slow, dead or absent costs a bounded time and no data.
"""

import json
import logging
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from experiments.tracking.jsonl import METRICS, read_history, write_json
from experiments.tracking.tracker import SUCCESS, RunInfo, Tracker

log = logging.getLogger(__name__)

STATE = "wandb_run.json"  # in the run folder: the id under which a resumed run goes on
START_TIMEOUT = 6.0  # seconds for a server to accept a run before it goes on offline
# in the environment of an agent's run: a file that exists once the machine is wanted back
WANTED_BACK = "EXPERIMENTS_WANTED_BACK"
SECRET = re.compile(r"(api_?key|(access|auth)_?token|password|secret)$", re.IGNORECASE)

SIZES = ("parameters", "total_steps", "steps_per_epoch", "batch_size")

Mode = Literal["online", "offline", "disabled"]

_client = threading.Lock()  # the runs of this process share one service process
_live = 0  # the number of these runs


@dataclass(eq=False)
class Wandb(Tracker):
    """One W&B run; `conf/logger/wandb.yaml` describes the arguments."""

    project: str
    entity: str | None = None
    name: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: Sequence[str] = ()
    notes: str | None = None
    mode: Mode | None = None
    log_model: bool = False
    finish_timeout: float = 30.0

    def __post_init__(self) -> None:
        self._directory = Path()
        self._run: Any = None
        self._next_step = 0

    @property
    def location(self) -> str | None:
        if self._run is None:
            return None
        if self._run.offline:  # a resumed run has a folder for each time it was started
            return f"wandb sync {shlex.quote(str(self._directory))}/wandb/offline-run-*"
        return self._run.url

    @property
    def slow_to_start(self) -> bool:  # type: ignore[override]
        return self._wanted != "disabled"

    @property
    def takes_model(self) -> bool:  # type: ignore[override]
        return self.log_model

    def start(self, run: RunInfo) -> None:
        mode = self._wanted
        if mode == "disabled":
            return
        self._directory = run.directory
        state = run.directory / STATE
        resumed = run.start_step is not None and state.exists()
        run_id = json.loads(state.read_text())["id"] if resumed else None
        with _client:
            self._run = self._open(run, _usable(mode), run_id)
        write_json(state, {"id": self._run.id, "location": self.location})
        self._run.define_metric("epoch", hidden=True)
        self._run.define_metric("val/*", step_metric="epoch", step_sync=False)
        lock = Path(sys.argv[0]).resolve().with_name("requirements.lock")
        if lock.is_file():
            self._run.save(lock, base_path=lock.parent, policy="now")
        # a file with the last step that W&B was given: offline, nothing else has it after a crash
        path = run.directory / "wandb" / "last_step"
        self._last_step = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if run.start_step is not None:
            self._continue(run, run.start_step)
        log.info("W&B: %s", self.location)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._run is not None and step >= self._next_step:
            self._run.log(dict(scalars), step=step)
            os.pwrite(self._last_step, b"%20d" % step, 0)

    def figure(self, step: int, name: str, path: Path) -> None:
        if self._run is not None and step >= self._next_step:
            import wandb

            moves = path.suffix == ".gif"
            media = wandb.Video(str(path), format="gif") if moves else wandb.Image(str(path))
            self._run.log({name: media}, step=step)

    def model(self, path: Path) -> None:
        """Upload the checkpoint folder as an artifact of type `model`, with `log_model`."""
        if self._run is not None and self.log_model:
            import wandb

            artifact = wandb.Artifact(f"model-{self._run.id}", type="model")
            # A finished checkpoint does not change: take it from where it lies, without a copy.
            artifact.add_dir(str(path), policy="immutable", skip_cache=True)
            self._run.log_artifact(artifact)

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        if self._run is None:
            return
        run, self._run = self._run, None
        try:
            values = {k: v for k, v in summary.items() if k != "wandb"}
            run.summary.update({**flatten(values), "status": status})
            wanted_back = os.environ.get(WANTED_BACK)
            if status == "interrupted" and wanted_back and Path(wanted_back).exists():
                run.mark_preempting()  # so that the server gives it to an agent again
            run.finish(exit_code=0 if status in SUCCESS else 1)
        except TimeoutError:
            log.warning(
                "W&B did not take everything within %g s; send the rest with: wandb sync %s",
                self.finish_timeout,
                run.sync_dir,
            )
        finally:
            os.close(self._last_step)
            with _client:
                _close()

    @property
    def _wanted(self) -> str | None:
        return self.mode or os.environ.get("WANDB_MODE")

    def _open(self, run: RunInfo, mode: Mode, run_id: str | None) -> Any:
        """Start the run; offline if the server does not accept it, or not in time."""
        global _live
        import wandb

        settings = wandb.Settings(
            console="off",  # a live bar is no log
            silent=True,
            symlink=False,
            save_code=True,  # the commit, what differs from it, and run.py
            init_timeout=START_TIMEOUT,
            finish_timeout=self.finish_timeout,
            finish_timeout_raises=True,
            # a run that is stopped on W&B's page ends as if a scheduler had stopped it
            stop_fn=lambda: os.kill(os.getpid(), signal.SIGTERM),
            # undocumented, and refused where the client no longer has it
            x_transaction_log_flush_interval=1.0,  # a killed run loses 1 s offline, not 15 s
        )
        arguments: dict[str, Any] = {
            "project": self.project,
            "entity": self.entity,
            "name": self.name or run.name,
            "group": self.group,
            "job_type": self.job_type or "train",
            "tags": self.tags or _tags(run.config),
            "notes": self.notes or _note(run.directory),
            "config": flatten(run.config) | {f"run.{name}": getattr(run, name) for name in SIZES},
            "dir": run.directory,
            "id": run_id,
            "resume": "allow" if run_id and mode == "online" else None,
            "reinit": "create_new",  # trials side by side are several runs of one process
            "settings": settings,
        }
        try:
            opened = wandb.init(**arguments, mode=mode)
        except Exception as error:
            if mode == "offline":
                raise
            log.warning("W&B did not take this run, it goes on offline: %s", _first_line(error))
            opened = wandb.init(**arguments | {"resume": None}, mode="offline")
        _live += 1
        return opened

    def _continue(self, run: RunInfo, start_step: int) -> None:
        """Continue the history of a resumed run, with no step twice.

        A resumed run repeats the steps after its checkpoint bit for bit. Those that W&B already has
        are left out, since it would refuse or renumber them; those that never reached the server
        are sent again from `metrics.jsonl`.
        """
        offline = int(os.pread(self._last_step, 20, 0) or -1) + 1
        self._next_step = offline if self._run.offline else self._run.starting_step
        for event in read_history(run.directory / METRICS):
            if self._next_step <= event["step"] <= start_step:
                self.log(int(event.pop("step")), event)


def leave_run_aside() -> None:
    """Forget the one run that the environment names, in a process that trains several."""
    if given := os.environ.pop("WANDB_RUN_ID", None):
        log.warning("WANDB_RUN_ID=%s is left aside: each of several runs has its own", given)
    os.environ.pop("WANDB_RESUME", None)


def _usable(mode: str | None) -> Mode:
    """Return `online` if that is wanted and an API key is configured, else `offline`; never ask."""
    import wandb

    settings: dict[str, Any] = {"mode": mode} if mode else {}
    wandb.setup(settings=wandb.Settings(silent=True, **settings))
    if mode == "offline":
        return "offline"
    try:
        if wandb.login(prompt=False, verify=False):
            return "online"
        reason = "no API key is configured (wandb login)"
    except wandb.Error as error:
        reason = _first_line(error)
    if mode == "online" or not reason.startswith("no API key"):
        log.warning("W&B stays offline: %s", reason)
    return "offline"


def _close() -> None:
    """End the service process of the client with its last run.

    `finish()` may return before the last bytes are on disk; teardown waits for them. It raises, or
    exits Python, when the service process has died before.
    """
    global _live
    import wandb

    _live -= 1
    if _live == 0:
        try:
            wandb.teardown()
        except (Exception, SystemExit):
            os.environ.pop("WANDB_SERVICE", None)  # so that the next run starts a new one


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys, `optim.learning_rate`, without anything secret.

    W&B filters and plots top-level keys, and a sweep names its parameters this way.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if SECRET.search(str(key)):
            continue
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _tags(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the objective, model and data of a run, such as Classification, LeNet5, mnist."""
    classes = [config.get(group, {}).get("_target_") for group in ("objective", "model")]
    names = [target.rpartition(".")[2] for target in classes if target]
    return (*names, *filter(None, [config.get("data", {}).get("name")]))


def _note(directory: Path) -> str | None:
    """Return the overrides of the run in `directory`, without anything secret; None without any."""
    path = directory / ".hydra" / "overrides.yaml"
    overrides = yaml.safe_load(path.read_text()) if path.is_file() else None
    said = [o for o in overrides or [] if not SECRET.search(str(o).partition("=")[0])]
    return " ".join(said) or None
