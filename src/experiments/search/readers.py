"""Search spaces as users write them: sweep files in W&B's schema, and Hydra's grammar.

A plan stores its parameters as entries of W&B's `parameters`; Hydra's grammar is read into these.

`cli.search_keys` shows what there is of that.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from optuna.distributions import FloatDistribution, IntDistribution

from experiments.errors import UserError, suggest
from experiments.search.configs import Configs, wrong_overrides
from experiments.search.goals import EARLY, METRIC, VALIDATED, wrong_keys
from experiments.search.space import Parameter, Space, choice, normal
from experiments.tracking.wandb_names import flat_keys, flat_parameters
from experiments.types import PositiveInt

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

RANGE, MOMENTS = ("min", "max"), ("mu", "sigma")
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "categorical": ("values", "probabilities"),
    **dict.fromkeys(("int_uniform", "uniform", "log_uniform", "log_uniform_values"), RANGE),
    **dict.fromkeys(("inv_log_uniform", "inv_log_uniform_values"), RANGE),
    **dict.fromkeys(("q_uniform", "q_log_uniform", "q_log_uniform_values"), (*RANGE, "q")),
    **dict.fromkeys(("normal", "log_normal"), MOMENTS),
    **dict.fromkeys(("q_normal", "q_log_normal"), (*MOMENTS, "q")),
}
"""The distributions that W&B documents, each with its keys."""

KEYS = ("distribution", *dict.fromkeys(key for keys in DISTRIBUTIONS.values() for key in keys))
OPTIONAL = ("probabilities", "q", *MOMENTS)
IMPLIED = {"values": "categorical", "value": "constant", "mu": "normal", "sigma": "normal"}

FILE: dict[str, Any] = {
    "program": Literal["run.py"],
    "metric": dict | list[dict] | None,
    "run_cap": PositiveInt | None,
    "early_terminate": dict | None,
    **dict.fromkeys(("entity", "project", "name", "description", "command"), Any),
    **dict.fromkeys(("method", "parameters"), Any),  # checked with the plan
}
"""The keys of a sweep file, each with what it may be."""

EXPONENT = re.compile(r"([-+]?\d+)(\.\d*)?e([-+]?)(\d+)", re.IGNORECASE)


def read_space(parameters: Mapping[str, Any], configs: Configs) -> Space:
    """Read W&B's `parameters`; raises `UserError` with the parameter's name."""
    found = {}
    for name, node in parameters.items():
        try:
            found[name] = read_parameter(node)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    return Space(found, configs)


def read_parameter(node: Mapping[str, Any]) -> Parameter:
    """Read one entry of W&B's `parameters`.

    Raises:
        UserError: a key or a value that does not go with the distribution.
    """
    unknown = [key for key in node if key not in KEYS]
    if unknown:
        raise UserError(f"{unknown[0]!r} is no key of a parameter{suggest(unknown[0], KEYS)}")
    kind = node.get("distribution") or _implied(node)
    if kind not in DISTRIBUTIONS:
        hint = suggest(str(kind), DISTRIBUTIONS) or f"; there are {', '.join(DISTRIBUTIONS)}"
        raise UserError(f"there is no distribution {kind!r}{hint}")
    given, keys = {key: node[key] for key in node if key != "distribution"}, DISTRIBUTIONS[kind]
    for key in given:
        if key not in keys:
            raise UserError(f"{kind} takes {', '.join(keys)}, not {key!r}")
    for key in keys:
        if key not in (*given, *OPTIONAL):
            raise UserError(f"{kind} needs {key}")
    if kind == "constant":
        return choice([_plain("value", given["value"])])
    if kind == "categorical":
        return _choice(**given)
    numbers = {key: _number(key, value) for key, value in given.items()}
    for key in ("q", "sigma"):
        if numbers.get(key, 1) <= 0:
            raise UserError(f"{key}={numbers[key]:g} must be greater than 0")
    q = numbers.get("q", 1) if kind.startswith("q_") else None
    try:
        if not kind.endswith("normal"):
            return _range(kind, numbers["min"], numbers["max"], q)
        mean, deviation = numbers.get("mu", 0.0), numbers.get("sigma", 1.0)
        return normal(mean, deviation, log="log" in kind, q=q)
    except (OverflowError, ValueError) as error:  # of numbers that only their logarithm can be
        raise UserError(f"{kind} reaches numbers that are too large or too small") from error


def _implied(node: Mapping[str, Any]) -> str:
    """Return the distribution of an entry that names none, as W&B infers it."""
    if "min" in node and "max" in node:
        whole = all(isinstance(_number(key, node[key]), int) for key in ("min", "max"))
        return "int_uniform" if whole else "uniform"
    for key, kind in IMPLIED.items():
        if key in node:
            return kind
    raise UserError("needs value, values, min and max, or a distribution")


def _choice(values: Any, probabilities: Any = None) -> Parameter:
    if not isinstance(values, list) or not values:
        raise UserError("values must be a list of at least one value")
    values = [_plain("values", value) for value in values]
    if len({repr(value) for value in values}) < len(values):
        raise UserError(f"values={values} holds a value twice; use probabilities instead")
    if probabilities is None:
        return choice(values)
    if not isinstance(probabilities, list) or len(probabilities) != len(values):
        raise UserError(f"probabilities must be a list of {len(values)} numbers, one per value")
    numbers = [float(_number("probabilities", p)) for p in probabilities]
    if min(numbers) < 0 or not math.isclose(sum(numbers), 1, abs_tol=1e-6):
        raise UserError(f"probabilities add up to {sum(numbers):g}, not 1")
    return choice(values, numbers)


def _range(kind: str, low: float, high: float, q: float | None) -> Parameter:
    if low >= high:
        raise UserError(f"min={low:g} must be less than max={high:g}")
    if kind == "int_uniform":
        if not (float(low).is_integer() and float(high).is_integer()):
            raise UserError(f"int_uniform needs whole numbers, not min={low:g} max={high:g}")
        return Parameter(IntDistribution(int(low), int(high)))
    if kind.endswith("values") and low <= 0:
        raise UserError(f"min={low:g}: a range on a log scale must lie above 0")
    if kind.startswith("inv") and not kind.endswith("values"):  # log(1/x) in [min, max]
        low, high = math.exp(-high), math.exp(-low)
    elif kind.endswith("log_uniform"):  # log x in [min, max]
        if high > 60:
            raise UserError(
                f"{kind} takes natural logarithms; for max={high:g} itself use {kind}_values"
            )
        low, high = math.exp(low), math.exp(high)
    return Parameter(FloatDistribution(low, high, log="log" in kind), q=q)


def _number(key: str, value: Any) -> float:
    value = _plain(key, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{key}={value}: must be a number")
    if not math.isfinite(value):
        raise UserError(f"{key}={value} must be finite")
    return value


def _plain(key: str, value: Any) -> Any:
    """Return a value as it is; raise `UserError` for a number that YAML reads as text: 1e-5."""
    if not isinstance(value, str) or (found := EXPONENT.fullmatch(value.strip())) is None:
        return value
    whole, fraction, sign, exponent = found.groups()
    number = f"{whole}{fraction or '.0'}e{sign or '+'}{exponent}"
    raise UserError(f"{key}: YAML reads {value} as text; write {number}")


@dataclass(frozen=True)
class SweepFile:
    """The content of a sweep file, and the line of each of its keys."""

    path: Path
    content: dict[str, Any]
    lines: Mapping[tuple[str, ...], int]

    def located(self, complaint: str) -> str | None:
        """Return a complaint after the line of the key that it begins with: `x.yaml:12: min=...`.

        None where the file has no such key.
        """
        name, inner, *_ = [*re.split(r"[:= ]+", complaint.replace("'", ""), maxsplit=2), ""]
        path = tuple(name.split("."))
        parents = (path[:depth] for depth in range(len(path), 0, -1))
        for keys in (("parameters", name, inner), ("parameters", name), *parents):
            if keys in self.lines:
                return f"{self.path}:{self.lines[keys]}: {complaint}"
        return None


def read_sweep_file(path: Path) -> SweepFile:
    """Read a sweep file and check all that can be checked without a config.

    Raises:
        UserError: a line for everything that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: this is not UTF-8; save the file in it") from error
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: this is no YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise UserError(
            f"{path}:{line}: YAML takes no character U+{error.character:04X}: remove it"
        ) from error
    except (ValueError, RecursionError) as error:  # of a date, of brackets without end
        raise UserError(f"{path}: this is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}:1: a sweep file holds method, metric and parameters")
    lines: dict[tuple[str, ...], int] = {}
    twice = list(_index(root, (), lines))
    content["parameters"] = flat_parameters(content.get("parameters"))
    file = SweepFile(path, content, lines)
    problems = [f"{path}:{line}: {key} is given twice" for key, line in twice]
    problems += [file.located(text) or f"{path}:1: {text}" for text in _problems(content)]
    if problems:
        raise UserError("\n".join(problems))
    return file


def _index(
    node: yaml.Node | None, path: tuple[str, ...], lines: dict[tuple[str, ...], int]
) -> Iterator[tuple[str, int]]:
    """Note the line of every key; yield (key, line) of keys that are given twice."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        inner = flat_keys((*path, str(key.value)))
        if inner in lines:
            yield str(key.value), key.start_mark.line + 1
        lines[inner] = key.start_mark.line + 1
        yield from _index(value, inner, lines)


def _problems(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield a complaint, which begins with a key, for everything that W&B's schema forbids."""
    yield from wrong_keys(FILE, content)
    metrics, early = content.get("metric"), content.get("early_terminate")
    if isinstance(early, dict):
        yield from wrong_keys(EARLY, {"type": None} | early, "early_terminate.")
    for metric in metrics if isinstance(metrics, list) else [metrics]:
        if isinstance(metric, dict):
            yield from wrong_keys(METRIC, metric, "metric.")
            if "name" not in metric:
                yield "metric needs a name and a goal"
            elif not (str(metric["name"]).startswith("val/") or isinstance(metrics, list)):
                yield f"metric.name={metric['name']}: {VALIDATED}"
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        yield "parameters must name what is searched"
        return
    for name, node in parameters.items():
        try:
            parameter = read_parameter(node if isinstance(node, dict) else {})
        except UserError as error:
            yield f"{name}: {error}"
            continue
        if name == "allow":
            yield "allow: only a command line can allow what a sweep file names"
        try:
            parameter.vet(str(name), "a sweep file")
        except UserError as error:
            yield str(error)
    yield from wrong_overrides(content.get("command"), "a sweep file")


def split(overrides: Sequence["Override"]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Split a parsed command line into parameters in W&B's schema and plain overrides.

    Raises:
        UserError: a sweep that W&B's schema has no word for, or whose key is given twice.
    """
    parameters: dict[str, dict[str, Any]] = {}
    plain: list[str] = []
    for override in overrides:
        assert override.input_line is not None
        if not override.is_sweep_override():
            plain.append(override.input_line)
            continue
        for other in overrides:
            same = other.key_or_group == override.key_or_group and other is not override
            if same and (other.package == override.package or not other.is_sweep_override()):
                said = f"{override.input_line} and as {other.input_line}"
                raise UserError(f"{override.key_or_group}: given twice, as {said}")
        try:
            at = f"@{override.package}" if override.package else ""
            parameters[override.key_or_group + at] = _entry(override)
        except UserError as error:
            raise UserError(f"{override.input_line}: {error}") from error
    return parameters, plain


def _entry(override: "Override") -> dict[str, Any]:
    """Return one sweep override as an entry of W&B's `parameters`."""
    from hydra.core.override_parser.types import Glob

    choice_of_key = override.package is not None and "." in override.key_or_group
    if override.is_add() or override.is_force_add() or (override.package and not choice_of_key):
        raise UserError("only keys that the config has can be searched")
    if not override.is_interval_sweep():
        values = [_unquoted(value) for value in override.sweep_iterator()]
        if isinstance(override.value(), Glob):  # which finds what files of choices share, too
            values = [value for value in values if not value.startswith("_")]
        if not values:
            raise UserError("there is nothing to choose from")
        return {"values": values}
    sweep: Any = override.value()
    low, high = sweep.start, sweep.end
    if low is None or high is None:
        raise UserError("an interval has two ends")
    steps = [tag for tag in sweep.tags if re.fullmatch(r"q[\d.]+", tag)]
    if (unknown := sorted(sweep.tags - {"log", *steps})) or len(steps) > 1:
        raise UserError(f"{(unknown or steps)[0]!r}: tags are log, and a step such as q8 or q0.1")
    log, whole = "log" in sweep.tags, isinstance(low, int) and isinstance(high, int)  # by int(...)
    kind, ends = "log_uniform_values" if log else "uniform", {"min": low, "max": high}
    if steps:
        return {"distribution": f"q_{kind}", **ends, "q": yaml.safe_load(steps[0][1:])}
    if whole and log:
        return {"distribution": "q_log_uniform_values", **ends, "q": 1}
    return {"distribution": "int_uniform" if whole else kind, **ends}


def _unquoted(value: Any) -> Any:
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, QuotedString):
        return value.text
    return [_unquoted(item) for item in value] if isinstance(value, list) else value
