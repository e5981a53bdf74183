"""A stand-in for the W&B server on loopback: enough for the real client (0.31) to log runs to.

Not a GraphQL engine: an operation is answered by its name, with the fields that the client reads.
"""

import base64
import contextlib
import gzip
import json
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

ENTITY = "someone"
API_KEY = "0123456789" * 4


@dataclass
class Run:
    """One run as it was logged to the server."""

    entity: str
    project: str
    id: str
    name: str = ""
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    logs: dict[int, str] = field(default_factory=dict)  # lines of the Logs tab
    exit_code: int | None = None
    sweep: str | None = None
    preempting: bool = False

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The history as `metrics.jsonl` has it: `step`, and none of the client's own keys."""
        return [
            {"step": row["_step"], **{k: v for k, v in row.items() if not k.startswith("_")}}
            for row in self.history
        ]


@dataclass
class Artifact:
    id: str
    type: str
    collection: str
    aliases: list[str]
    state: str = "PENDING"
    files: list[str] = field(default_factory=list)
    used_by: list[str] = field(default_factory=list)  # ids of runs


class Server(ThreadingHTTPServer):
    """Holds what arrived, for tests to look at."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.lock = threading.RLock()
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, Artifact] = {}  # see `wandb_server.artifacts`
        self.stored: dict[str, bytes] = {}  # what was uploaded of them, by path
        self.alerts: list[dict[str, Any]] = []
        self.sweeps: dict[str, Any] = {}  # see `wandb_server.sweeps`
        self.agents: dict[str, Any] = {}
        self.views: dict[str, dict[str, Any]] = {}  # see `wandb_server.views`
        self.unknown: list[str] = []
        self.broken = 0  # answer everything with this code

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": API_KEY}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error; any other shows up as a missing answer."""

    def run(self, entity: str | None, project: str, run_id: str) -> Run:
        return self.runs.setdefault(run_id, Run(entity or ENTITY, project, run_id))


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


Operation = Callable[[Server, dict[str, Any]], dict[str, Any]]
OPERATIONS: dict[str, Operation] = {}


def operation(*names: str) -> Callable[[Operation], Operation]:
    """Registers the answer to the operations of these names."""

    def register(function: Operation) -> Operation:
        OPERATIONS.update(dict.fromkeys(names, function))
        return function

    return register


@operation("Viewer", "GetViewer", "GetDefaultEntity", "DefaultEntity")
def _viewer(server: Server, v: dict) -> dict:
    viewer = {"id": "1", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "flags": "{}"}
    return {"viewer": viewer | {"teams": {"edges": []}, "defaultEntity": {"name": ENTITY}}}


@operation("ServerFeaturesQuery")
def _features(server: Server, v: dict) -> dict:
    return {"serverInfo": {"features": [], "cliVersionInfo": "{}"}}


@operation("OrganizationCoreWeaveOrganizationID")
def _organization(server: Server, v: dict) -> dict:
    return {"entity": {"organization": None}}


@operation("RunResumeStatus")
def _resume(server: Server, v: dict) -> dict:
    run = server.runs.get(v["name"])
    return {"model": {**project_of(v["project"], v.get("entity")), "bucket": run and _bucket(run)}}


@operation("UpsertBucket")
def _upsert(server: Server, v: dict) -> dict:
    if v.get("name"):
        key = v.get("entity"), v["project"], v["name"]
    else:
        key = tuple(base64.b64decode(v["id"]).decode().split(":"))
    inserted = key[2] not in server.runs
    run = server.run(*key)
    fields = {"displayName": "name", "groupName": "group", "jobType": "job_type", "sweep": "sweep"}
    for sent, attribute in {**fields, "notes": "notes", "tags": "tags"}.items():
        if v.get(sent):
            setattr(run, attribute, v[sent])
    run.config |= {k: e["value"] for k, e in json.loads(v.get("config") or "{}").items()}
    run.summary |= json.loads(v.get("summaryMetrics") or "{}")
    return {"upsertBucket": {"bucket": _bucket(run), "inserted": inserted}}


@operation("CreateRunFiles")
def _run_files(server: Server, v: dict) -> dict:
    prefix = f"{server.url}/run/{v['entity'] or ENTITY}/{v['project']}/{v['run']}"
    files = [{"name": name, "uploadUrl": f"{prefix}/{name}"} for name in v["files"]]
    return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}


@operation("NotifyScriptableRunAlert")
def _alert(server: Server, v: dict) -> dict:
    server.alerts.append(v)
    return {"notifyScriptableRunAlert": {"success": True}}


@operation("RunStoppedStatus")
def _stopped(server: Server, v: dict) -> dict:
    return {"project": {"run": {"stopped": False}}}


def project_of(name: str, entity: str | None) -> dict:
    """A project as the client wants it described."""
    owner = entity or ENTITY
    described = {"id": name, "internalId": name, "name": name, "entityName": owner}
    return described | {"entity": {"id": owner, "name": owner}}


def _bucket(run: Run) -> dict:
    last = run.history[-1] if run.history else None
    return {
        "id": base64.b64encode(f"{run.entity}:{run.project}:{run.id}".encode()).decode(),
        "name": run.id,
        "displayName": run.name or run.id,
        "project": project_of(run.project, run.entity),
        "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
        # a run counts as started, and can be resumed, once its telemetry `t` is there
        "wandbConfig": json.dumps({"t": 1} if "_wandb" in run.config else {}),
        "summaryMetrics": json.dumps(run.summary),
        "historyLineCount": len(run.history),
        "historyTail": json.dumps([json.dumps(last)] if last else []),
        "eventsLineCount": 0,
        "eventsTail": "[]",
        "logLineCount": 0,
        "tags": run.tags,
        "sweepName": run.sweep,
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self._body())
        with self.server.lock:
            if self.path == "/graphql":
                self._answer(self._graphql(body))
            elif match := re.fullmatch(r"/files/(.+)/(.+)/(.+)/file_stream", unquote(self.path)):
                self._stream(self.server.run(*match.groups()), body)
                self._answer({"exitcode": None, "limits": {}})
            else:
                self._answer({"error": "not found"}, code=404)

    def do_PUT(self) -> None:
        body = self._body()
        with self.server.lock:
            if match := re.fullmatch(r"/run/(.+?)/(.+?)/(.+?)/(.+)", unquote(self.path)):
                entity, project, run_id, name = match.groups()
                self.server.run(entity, project, run_id).files[name] = body
            else:
                self.server.stored[unquote(self.path)] = body
        self._answer({})

    def do_GET(self) -> None:
        if (body := self.server.stored.get(unquote(self.path))) is not None:
            self._send(body, 200)
        else:
            self._answer({}, code=200 if self.path in ("/", "/healthz", "/ready") else 404)

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        match = re.search(r"\b(?:query|mutation)\s+(\w+)", request["query"])
        name = match.group(1) if match else "?"
        if name not in OPERATIONS:
            self.server.unknown.append(name)
            return {"data": None, "errors": [{"message": f"unknown operation {name}"}]}
        return {"data": OPERATIONS[name](self.server, request.get("variables") or {})}

    def _stream(self, run: Run, request: dict[str, Any]) -> None:
        for name, chunk in (request.get("files") or {}).items():
            lines, offset = chunk.get("content", []), chunk.get("offset", 0)
            if name == "wandb-history.jsonl":
                run.history[offset : offset + len(lines)] = map(json.loads, lines)
            elif name == "wandb-summary.json" and lines:
                run.summary = json.loads(lines[-1])
            elif name == "output.log":
                run.logs |= dict(enumerate(lines, offset))
        run.preempting = run.preempting or bool(request.get("preempting"))
        if request.get("complete"):
            run.exit_code = request.get("exitcode")

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        unpack = {"gzip": gzip.decompress, "deflate": zlib.decompress}
        return unpack.get(self.headers.get("Content-Encoding", ""), bytes)(body)

    def _answer(self, value: dict[str, Any], code: int = 200) -> None:
        code = self.server.broken or code
        self._send(json.dumps(value).encode(), code)

    def _send(self, data: bytes, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
