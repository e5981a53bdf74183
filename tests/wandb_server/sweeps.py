"""The server's part of sweeps: `wandb sweep` registers one, `wandb agent` asks what to run."""

import itertools
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from wandb_server.server import ENTITY, Run, Server, operation, project_of


@dataclass
class Sweep:
    """A sweep, the runs that it gave out, and the rule by which it ends runs early."""

    id: str
    entity: str
    project: str
    text: str
    state: str = "PENDING"
    runs: list[str] = field(default_factory=list)
    drawn: dict[str, dict[str, Any]] = field(default_factory=dict)
    stop: Callable[[Run], bool] | None = None

    @property
    def config(self) -> dict[str, Any]:
        return yaml.safe_load(self.text)

    def draw(self) -> dict[str, Any] | None:
        """The values of the next run, or None when the search is over."""
        parameters = self.config["parameters"]
        count, cap = len(self.runs), self.config.get("run_cap")
        if cap is not None and count >= cap:
            return None
        if self.config["method"] == "grid":
            lists = [p.get("values", [p.get("value")]) for p in parameters.values()]
            points = list(itertools.product(*lists))
            return (
                dict(zip(parameters, points[count], strict=True)) if count < len(points) else None
            )
        chance = random.Random(count)
        return {name: _drawn(p, chance) for name, p in parameters.items()}


def _drawn(parameter: dict[str, Any], chance: random.Random) -> Any:
    if "value" in parameter:
        return parameter["value"]
    if "values" in parameter:
        return chance.choice(parameter["values"])
    low, high = parameter["min"], parameter["max"]
    match parameter.get("distribution", "uniform"):
        case "log_uniform_values":
            return math.exp(chance.uniform(math.log(low), math.log(high)))
        case "int_uniform":
            return chance.randint(low, high)
        case "uniform":
            return chance.uniform(low, high)
        case other:
            raise ValueError(f"the stand-in draws no {other}")


@operation("UpsertSweep")
def _upsert(server: Server, v: dict) -> dict:
    sweep = server.sweeps.get(v.get("id") or "")
    if sweep is None:
        name = f"sweep{len(server.sweeps)}"
        entity = v.get("entityName") or ENTITY
        sweep = server.sweeps[name] = Sweep(name, entity, v["projectName"], v["config"])
    sweep.state = v.get("state") or sweep.state
    return {"upsertSweep": {"sweep": _described(sweep), "configValidationWarnings": []}}


@operation("SweepWithRuns", "GetSweepState", "SweepConfig", "GetSweep", "Sweep")
def _read(server: Server, v: dict) -> dict:
    sweep = server.sweeps[v.get("sweep") or v["name"]]
    project = project_of(sweep.project, sweep.entity)
    return {"project": project | {"sweep": _described(sweep)}}


@operation("CreateAgent")
def _create_agent(server: Server, v: dict) -> dict:
    name = f"agent{len(server.agents)}"
    server.agents[name] = server.sweeps[v["sweep"]]
    return {"createAgent": {"agent": {"id": name}}}


@operation("Heartbeat", "AgentHeartbeat")
def _heartbeat(server: Server, v: dict) -> dict:
    sweep: Sweep = server.agents[v["id"]]
    alive = [name for name, runs in json.loads(v.get("runState") or "{}").items() if runs]
    commands: list[dict[str, Any]] = []
    for name in alive:
        if sweep.stop is not None and name in server.runs and sweep.stop(server.runs[name]):
            commands.append({"type": "stop", "run_id": name})
    if not alive:
        again = _preempted(server, sweep)
        values = sweep.drawn[again] if again else sweep.draw()
        if values is None:
            sweep.state = "FINISHED"
            commands.append({"type": "exit"})
        else:
            name = again or f"{sweep.id}-run{len(sweep.runs)}"
            sweep.drawn[name] = values
            sweep.runs = list(sweep.drawn)
            sweep.state = "RUNNING"
            arguments = {key: {"value": value} for key, value in values.items()}
            program = sweep.config.get("program", "")
            commands.append(
                {"type": "run", "run_id": name, "program": program, "args": arguments, "logs": []}
            )
    answer = {"agent": {"id": v["id"]}, "commands": json.dumps(commands)}
    return {"agentHeartbeat": answer}


def _preempted(server: Server, sweep: Sweep) -> str | None:
    """A run that was preempted and waits for an agent; it is given out once more."""
    for name in sweep.runs:
        run = server.runs.get(name)
        if run is not None and run.preempting and run.exit_code:
            run.preempting, run.exit_code = False, None
            return name
    return None


def _described(sweep: Sweep) -> dict[str, Any]:
    page = {"hasNextPage": False, "endCursor": None}
    return {
        "id": sweep.id,
        "name": sweep.id,
        "displayName": sweep.config.get("name"),
        "description": None,
        "method": sweep.config["method"],
        "state": sweep.state,
        "config": sweep.text,
        "createdAt": "2024-01-01T00:00:00",
        "updatedAt": None,
        "heartbeatAt": None,
        "earlyStopJobRunning": False,
        "bestLoss": None,
        "controller": None,
        "scheduler": None,
        "controllerRunName": None,
        "runCount": len(sweep.runs),
        "runCountExpected": sweep.config.get("run_cap"),
        "priorRuns": {"edges": []},
        "project": project_of(sweep.project, sweep.entity),
        "runs": {"edges": [], "totalCount": len(sweep.runs), "pageInfo": page},
    }
