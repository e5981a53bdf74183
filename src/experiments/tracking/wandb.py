"""Weights & Biases, https://docs.wandb.ai: online, offline or disabled.

The client is imported only by a run that uses it. Its files lie in the run folder, and a server
that is slow, dead or absent costs a bounded time and no data.
"""

import logging
import math
import os
import shlex
import signal
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from experiments.core.config import ARTIFACT
from experiments.errors import UserError, suggest
from experiments.tracking import provenance
from experiments.tracking.jsonl import METRICS, read_history, read_mapping, write_json
from experiments.tracking.log_file import LOG, LogStream
from experiments.tracking.tracker import SUCCESS, RunInfo, Tracker
from experiments.tracking.wandb_client import Mode, end_service, first_line, import_client, usable
from experiments.tracking.wandb_files import (
    ClientLog,
    last_id,
    mend_offline_runs,
    wait_for_a_new_folder,
)
from experiments.tracking.wandb_media import media_of
from experiments.tracking.wandb_names import (
    LONGEST,
    check_names,
    flatten,
    note_of,
    project_of,
    public,
    tags_of,
)

log = logging.getLogger(__name__)

STATE = "wandb_run.json"  # in the run folder: the id under which every sitting records the run
LOOK_EVERY = 10.0  # seconds between looks at whether the server still takes the run
ONLINE_AGAIN = 60.0  # seconds after a failed start until another run tries
START_TIMEOUT = 6.0  # seconds for a server to accept a run before it goes on offline
# in the environment of an agent's run: a file that exists once the machine is wanted back
WANTED_BACK = "EXPERIMENTS_WANTED_BACK"

MODES = {"run": "online", "dryrun": "offline"} | {m: m for m in get_args(Mode)}  # with old names

FAILURES = ("failed", "diverged")  # statuses that are worth an alert
SIZES = ("parameters", "total_steps", "steps_per_epoch", "batch_size")

_client = threading.Lock()  # the runs of this process share one service process
_live = 0  # the number of these runs
_taken: set[str] = set()  # ids from outside that a run of this process has
_refused = -math.inf  # when one last could not start online


@dataclass(eq=False)
class Wandb(Tracker):
    """One W&B run; `conf/logger/wandb.yaml` describes the arguments.

    What they leave open the variables of W&B's client decide, such as `WANDB_PROJECT`.

    Raises:
        UserError: W&B would refuse one of them.
    """

    project: str | None = None
    entity: str | None = None
    name: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: Sequence[str] = ()
    notes: str | None = None
    mode: Mode | None = None
    log_model: bool = False
    alert: bool = False
    finish_timeout: float = 30.0

    def __post_init__(self) -> None:
        self._directory = Path()
        self._run: Any = None
        self._next_step = 0
        self._late = 0  # steps by which the test is logged late
        self._said = False
        self._logs: logging.Handler = logging.NullHandler()
        env = os.environ.get
        self.project = project_of(self.project)
        self.entity = self.entity or env("WANDB_ENTITY")
        self.name = self.name or env("WANDB_NAME")
        self.group = self.group or env("WANDB_RUN_GROUP")
        self.job_type = self.job_type or env("WANDB_JOB_TYPE") or "train"
        self.notes = self.notes or env("WANDB_NOTES")
        self.tags = self.tags or tuple(filter(None, env("WANDB_TAGS", "").split(",")))
        if (mode := self._wanted) and mode not in MODES:
            valid = get_args(Mode)
            raise UserError(f"WANDB_MODE={mode}: one of {', '.join(valid)}{suggest(mode, valid)}")
        check_names(self.project, self.name, self.tags)

    @property
    def location(self) -> str | None:
        if self._run is None:
            return None
        if self._run.offline:
            # A run has a folder for each sitting. They are sent one by one, as one call takes none
            # behind a file that a kill left without a beginning or an end.
            folders = f"{shlex.quote(str(self._directory))}/wandb/offline-run-*"
            return f'for run in {folders}; do wandb sync "$run"; done'
        return self._run.url

    @property
    def next_step(self) -> int:
        """The first step that W&B has nothing of; of a run that has started."""
        return self._next_step

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
        known = _known(state) if (again := state.exists()) else {"id": _new_id()}
        known = {"entity": self.entity, "project": self.project} | known
        write_json(state, known)  # before W&B hears of it: killed between the two, it has one id
        with _client:
            import_client(run.directory / "wandb")
        recorded = mend_offline_runs(run.directory / "wandb")
        wait_for_a_new_folder(run.directory / "wandb")
        with _client:
            self._run = self._open(run, usable(mode), known, again)
        self._client_log = ClientLog(Path(self._run.settings.log_internal))
        self._looked = time.monotonic()
        write_json(state, known | {"id": self._run.id, "location": self.location})
        if not again and (log_file := run.directory / LOG).is_file():  # what was said before
            self._run.write_logs(log_file.read_text(errors="replace"))
        self._logs = LogStream(self._run.write_logs, "wandb")
        self._run.define_metric("epoch", hidden=True)
        self._run.define_metric("val/*", step_metric="epoch", step_sync=False)
        lock = Path(__file__).resolve().parents[3] / "requirements.lock"  # of a checkout
        if lock.is_file():
            self._run.save(lock, base_path=lock.parent, policy="now")
        for name in (provenance.FILE, f"{provenance.PATCHES}/*"):
            self._run.save(run.directory / name, base_path=run.directory, policy="now")
        source = (run.config.get("model") or {}).get("pretrained") or ""
        if source.startswith(ARTIFACT) and not self._run.offline:
            self._note_use(source.removeprefix(ARTIFACT))
        # A resumed run repeats the steps after its checkpoint bit for bit. Those that W&B has are
        # left out, since it would refuse or renumber them; those that never reached it are sent
        # again from the record.
        self._next_step = recorded + 1 if self._run.offline else self._run.starting_step
        for event in read_history(run.directory / METRICS):
            if self._next_step <= event["step"] <= (run.start_step or 0):
                self.log(int(event.pop("step")), event)
        if not self._run.offline:  # else the end says how to send it
            log.info("W&B: %s", self.location)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._run is None:
            return
        if any(name.startswith("test/") for name in scalars):  # of a run that was ended meanwhile
            self._late = max(self._next_step - step, 0)
        if (step := step + self._late) >= self._next_step:
            self._run.log(dict(scalars), step=step)
        if time.monotonic() - self._looked > LOOK_EVERY:
            self._looked = time.monotonic()
            self._say_refusal()

    def histogram(self, step: int, name: str, counts: Any, edges: Any) -> None:
        step += self._late
        if self._run is not None and step >= self._next_step:
            import wandb

            self._run.log({name: wandb.Histogram(np_histogram=(counts, edges))}, step=step)

    def figure(self, step: int, name: str, path: Path) -> None:
        step += self._late
        if self._run is not None and step >= self._next_step:
            import wandb

            moves = path.suffix == ".gif"
            media = wandb.Video(str(path), format="gif") if moves else wandb.Image(str(path))
            self._run.log({name: media}, step=step)

    def predictions(self, step: int, name: str, columns: Mapping[str, Any]) -> None:
        step += self._late
        if self._run is not None and step >= self._next_step:
            self._run.log(media_of(name, columns), step=step)

    def model(self, path: Path) -> None:
        """Upload the checkpoint folder as an artifact of type `model`, with `log_model`."""
        if self._run is not None and self.log_model:
            import wandb

            artifact = wandb.Artifact(f"model-{self._run.id}", type="model")
            # A finished checkpoint does not change: take it from where it lies, without a copy.
            artifact.add_dir(str(path), policy="immutable", skip_cache=True)
            self._run.log_artifact(artifact, aliases=["best", "latest"])  # it holds both weights

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        if self._run is None:
            return
        run = self._run
        try:
            values = {k: v for k, v in summary.items() if k != "wandb"}
            run.summary.update({**flatten(values), "status": status})
            if self.alert and status in FAILURES:
                title, text = f"{run.name[-40:]} {status}", f"{status} at step {run.step}"
                run.alert(title, f"{text}: {self.location}", level="ERROR")
            wanted_back = os.environ.get(WANTED_BACK)
            if status == "interrupted" and wanted_back and Path(wanted_back).exists():
                run.mark_preempting()  # so that the server gives it to an agent again
            run.finish(exit_code=0 if status in SUCCESS else 1)
            self._say_refusal()
        except TimeoutError:
            self._say_unsent(f"did not take everything within {self.finish_timeout:g} s")
        finally:
            self._run = None
            self._logs.close()
            with _client:
                _close()

    def _note_use(self, artifact: str) -> None:
        """Have W&B note what the run starts from."""
        import wandb

        try:
            self._run.use_artifact(artifact)
        except (wandb.Error, ValueError) as error:
            log.warning("W&B does not note the use of %s: %s", artifact, first_line(error))

    def _say_refusal(self) -> None:
        if not self._run.offline and (reason := self._client_log.refusal()):
            self._say_unsent(f"has refused a part of this run ({reason[:200]})")

    def _say_unsent(self, what: str) -> None:
        """Say once what W&B did, and how to send later what it lacks."""
        if not self._said:
            self._said, folder = True, shlex.quote(self._run.sync_dir)
            log.warning("W&B %s; send it later: wandb sync --include-online %s", what, folder)

    @property
    def _wanted(self) -> str | None:
        mode = self.mode or os.environ.get("WANDB_MODE") or None
        return mode and MODES.get(mode.lower(), mode)

    def _open(self, run: RunInfo, mode: Mode, known: Mapping[str, Any], again: bool) -> Any:
        """Start the run; offline if the server does not accept it, or not in time."""
        global _live, _refused
        import wandb

        if time.monotonic() - _refused < ONLINE_AGAIN:
            mode = "offline"
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
        config = public(run.config) | {"run": {name: getattr(run, name) for name in SIZES}}
        if starts := provenance.read_starts(run.directory):
            config["provenance"] = provenance.in_brief(starts[-1])
        arguments: dict[str, Any] = {
            **{key: known[key] for key in ("id", "project", "entity")},
            "name": self.name or run.name[-LONGEST:],
            "group": self.group,
            "job_type": self.job_type,
            "tags": self.tags or tags_of(run.config),
            "notes": self.notes or note_of(run.directory),
            "config": config,
            "dir": run.directory,
            "resume": "allow" if again and mode == "online" else None,
            "reinit": "create_new",  # trials side by side are several runs of one process
            "settings": settings,
        }
        try:
            opened = wandb.init(**arguments, mode=mode)
        except Exception as error:
            if mode == "offline":
                raise
            log.warning("W&B did not take this run, it goes on offline: %s", first_line(error))
            _refused = time.monotonic()
            if _live:  # the client takes an id that it has failed with once it has started anew
                arguments["id"] = uuid.uuid4().hex[:8]
            else:
                end_service()
            opened = wandb.init(**arguments | {"resume": None}, mode="offline")
        # a sweep that searches for a choice, `optim`, keeps that name for it
        taken = {k: v for k, v in config.items() if isinstance(v, dict)}
        taken = {k: v for k, v in taken.items() if not isinstance(opened.config[k], Mapping)}
        opened.config.update(flatten(taken), allow_val_change=True)
        _live += 1
        return opened


def _new_id() -> str:
    """Return the id that is given from outside, as by an agent of W&B's, but once, or a new one."""
    given = os.environ.get("WANDB_RUN_ID")
    if given and given not in _taken:
        _taken.add(given)
        return given
    return uuid.uuid4().hex[:8]


def leave_run_aside() -> None:
    """Forget the one run that the environment names, in a process that trains several."""
    if given := os.environ.pop("WANDB_RUN_ID", None):
        log.warning("WANDB_RUN_ID=%s is left aside: each of several runs has its own", given)
    os.environ.pop("WANDB_RESUME", None)


def _known(state: Path) -> dict[str, Any]:
    """Return what earlier sittings of a run noted, of a damaged note as much as their files say."""
    try:
        known = read_mapping(state)
        if isinstance(known.get("id"), str):
            return known
    except UserError as error:
        log.warning("%s", str(error).splitlines()[0])
    return {"id": last_id(state.parent / "wandb") or _new_id()}


def _close() -> None:
    """End the service process of the client with its last run."""
    global _live
    _live -= 1
    if _live == 0:
        end_service()
