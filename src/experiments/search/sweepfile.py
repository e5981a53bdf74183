"""Sweep files in W&B's own schema, read and checked whole, with the lines of what is wrong."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.errors import UserError, suggest
from experiments.search.schema import distribution

KEYS = (
    "program",
    "entity",
    "project",
    "name",
    "description",
    "method",
    "metric",
    "parameters",
    "early_terminate",
    "command",
    "run_cap",
)
METRIC_KEYS = ("name", "goal", "target")
PROGRAM = "run.py"


@dataclass(frozen=True)
class SweepFile:
    """A sweep file: what it says, and on which line it says it."""

    path: Path
    content: dict[str, Any]
    lines: Mapping[tuple[str, ...], int]

    def where(self, *keys: str) -> str:
        """`sweeps/x.yaml:12`, the line of a key."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return f"{self.path}:{self.lines.get(keys, 1)}"


def read_sweep_file(path: Path) -> SweepFile:
    """Reads a sweep file and checks all that can be checked without a config.

    Raises:
        UserError: a line for everything that is wrong.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: this is no YAML: {error.problem}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}:1: a sweep file holds method, metric and parameters")
    lines: dict[tuple[str, ...], int] = {}
    twice = list(_index(root, (), lines))
    file = SweepFile(path, content, lines)
    problems = [f"{path}:{line}: {key} is given twice" for key, line in twice]
    problems += [f"{file.where(*keys)}: {problem}" for keys, problem in _problems(content)]
    if problems:
        raise UserError("\n".join(problems))
    return file


def _index(
    node: yaml.Node | None, path: tuple[str, ...], lines: dict[tuple[str, ...], int]
) -> Iterator[tuple[str, int]]:
    """Notes the line of every key; yields (key, line) of keys that are given twice."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        inner = (*path, str(key.value))
        if inner in lines:
            yield str(key.value), key.start_mark.line + 1
        lines[inner] = key.start_mark.line + 1
        yield from _index(value, inner, lines)


def _problems(content: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """(keys, what is wrong there) for everything that W&B's schema forbids."""
    for key in content:
        if key not in KEYS:
            yield (str(key),), f"{key}: there is no such key{suggest(str(key), KEYS)}"
    if content.get("program", PROGRAM) != PROGRAM:
        yield ("program",), f"program={content['program']}: must be {PROGRAM}"
    cap = content.get("run_cap")
    if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
        yield ("run_cap",), f"run_cap={cap}: must be a whole number of at least 1"
    yield from _metric_problems(content.get("metric"))
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        yield ("parameters",), "parameters must name what is searched"
        return
    for name, node in parameters.items():
        where = ("parameters", str(name))
        if not isinstance(node, dict):
            yield where, f"{name}: needs value, values, min and max, or a distribution"
            continue
        try:
            distribution(node)
        except UserError as error:
            key = next((str(k) for k in node if str(error).startswith((f"{k}:", f"{k}="))), "")
            unknown = next((str(k) for k in node if str(error).startswith(repr(k))), "")
            yield (*where, key or unknown), f"{name}: {error}"


def _metric_problems(metric: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    if metric is None:
        return
    if not isinstance(metric, dict) or "name" not in metric:
        yield ("metric",), "metric needs a name and a goal"
        return
    for key in metric:
        if key not in METRIC_KEYS:
            hint = suggest(str(key), METRIC_KEYS)
            yield ("metric", str(key)), f"metric.{key}: there is no such key{hint}"
    if not str(metric["name"]).startswith("val/"):
        yield (
            ("metric", "name"),
            f"metric.name={metric['name']}: the validation split decides, "
            f"so it must be a name such as val/accuracy",
        )
    if metric.get("goal", "minimize") not in ("minimize", "maximize"):
        yield (
            ("metric", "goal"),
            f"metric.goal={metric['goal']}: must be minimize or maximize",
        )
