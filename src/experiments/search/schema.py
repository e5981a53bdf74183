"""W&B's sweep schema: from an entry of `parameters` to the distribution that it describes."""

import math
from collections.abc import Mapping
from typing import Any

from experiments.errors import UserError, suggest
from experiments.search.distributions import Choice, Distribution, Integers, Numbers

ARGUMENTS = {
    "constant": ("value",),
    "categorical": ("values", "probabilities"),
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "q_uniform": ("min", "max", "q"),
    "log_uniform": ("min", "max"),
    "log_uniform_values": ("min", "max"),
    "q_log_uniform": ("min", "max", "q"),
    "q_log_uniform_values": ("min", "max", "q"),
    "inv_log_uniform": ("min", "max"),
    "inv_log_uniform_values": ("min", "max"),
    "normal": ("mu", "sigma"),
    "q_normal": ("mu", "sigma", "q"),
    "log_normal": ("mu", "sigma"),
    "q_log_normal": ("mu", "sigma", "q"),
}
"""The distributions that W&B documents, each with its keys."""

KEYS = ("distribution", *dict.fromkeys(key for keys in ARGUMENTS.values() for key in keys))


def distribution(node: Mapping[str, Any]) -> Distribution:
    """What one entry of W&B's `parameters` describes.

    Raises:
        UserError: a key or a value that does not go with the distribution.
    """
    unknown = [key for key in node if key not in KEYS]
    if unknown == ["parameters"]:
        raise UserError("nested parameters do not reach Hydra; write flat dotted names")
    if unknown:
        raise UserError(f"{unknown[0]!r} is no key of a parameter{suggest(unknown[0], KEYS)}")
    kind = node.get("distribution") or _implied(node)
    if kind not in ARGUMENTS:
        hint = suggest(str(kind), ARGUMENTS) or f"; there are {', '.join(ARGUMENTS)}"
        raise UserError(f"there is no distribution {kind!r}{hint}")
    given = {key: value for key, value in node.items() if key != "distribution"}
    for key in given:
        if key not in ARGUMENTS[kind]:
            raise UserError(f"{kind} takes {', '.join(ARGUMENTS[kind])}, not {key!r}")
    if kind in ("constant", "categorical"):
        return _choice(kind, given)
    numbers = {key: _number(key, value) for key, value in given.items()}
    q = numbers.get("q", 1) if kind.startswith("q_") else None
    if q is not None and q <= 0:
        raise UserError(f"q={q:g} must be greater than 0")
    if kind.endswith("normal"):
        mu, sigma = numbers.get("mu", 0.0), numbers.get("sigma", 1.0)
        if sigma <= 0:
            raise UserError(f"sigma={sigma:g} must be greater than 0")
        return Numbers("normal", mu, sigma, log="log" in kind, q=q)
    return _range(kind, numbers, q)


def _implied(node: Mapping[str, Any]) -> str:
    """The distribution of an entry that names none, as W&B infers it."""
    if "values" in node:
        return "categorical"
    if "value" in node:
        return "constant"
    if "min" in node and "max" in node:
        whole = all(isinstance(_number(key, node[key]), int) for key in ("min", "max"))
        return "int_uniform" if whole else "uniform"
    if "mu" in node or "sigma" in node:
        return "normal"
    raise UserError("needs value, values, min and max, or a distribution")


def _choice(kind: str, given: Mapping[str, Any]) -> Choice:
    if kind == "constant":
        if "value" not in given:
            raise UserError("constant needs a value")
        return Choice((_plain("value", given["value"]),))
    values = given.get("values")
    if not isinstance(values, list) or not values:
        raise UserError("values must be a list of at least one value")
    values = tuple(_plain("values", value) for value in values)
    if len({repr(value) for value in values}) < len(values):
        raise UserError(f"values={list(values)} holds a value twice; use probabilities instead")
    probabilities = given.get("probabilities")
    if probabilities is None:
        return Choice(values)
    if not isinstance(probabilities, list) or len(probabilities) != len(values):
        raise UserError(f"probabilities must be a list of {len(values)} numbers, one a value")
    numbers = tuple(float(_number("probabilities", p)) for p in probabilities)
    if min(numbers) < 0 or not math.isclose(sum(numbers), 1, abs_tol=1e-6):
        raise UserError(f"probabilities add up to {sum(numbers):g}, not 1")
    return Choice(values, numbers)


def _range(kind: str, numbers: Mapping[str, float], q: float | None) -> Distribution:
    for key in ("min", "max"):
        if key not in numbers:
            raise UserError(f"{kind} needs {key}")
    low, high = numbers["min"], numbers["max"]
    if low >= high:
        raise UserError(f"min={low:g} must be less than max={high:g}")
    if kind == "int_uniform":
        if not (float(low).is_integer() and float(high).is_integer()):
            raise UserError(f"int_uniform needs whole numbers, not min={low:g} max={high:g}")
        return Integers(int(low), int(high))
    if "log" not in kind:
        return Numbers("uniform", low, high, q=q)
    if kind.endswith("values"):
        if low <= 0:
            raise UserError(f"min={low:g}: a range on a log scale must lie above 0")
    elif kind.startswith("inv"):  # log(1/x) in [min, max]
        low, high = math.exp(-high), math.exp(-low)
    else:  # log x in [min, max]
        if high > 60:
            raise UserError(
                f"{kind} takes natural logarithms; for max={high:g} itself use {kind}_values"
            )
        low, high = math.exp(low), math.exp(high)
    return Numbers("uniform", float(low), float(high), log=True, q=q)


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _not_a_number(key, value)
    if not math.isfinite(value):
        raise UserError(f"{key}={value} must be finite")
    return value


def _plain(key: str, value: Any) -> Any:
    """A value of a list as it is, unless it is a number that YAML took for text."""
    if isinstance(value, str) and _reads_as_number(value):
        _not_a_number(key, value)
    return value


def _not_a_number(key: str, value: Any) -> Any:
    if isinstance(value, str) and (number := _reads_as_number(value)):
        raise UserError(f"{key}: YAML reads {value} as text; write {number}")
    raise UserError(f"{key}={value}: must be a number")


def _reads_as_number(text: str) -> str | None:
    """How YAML wants to see the number that `text` is meant to be: `1e-5` as `1.0e-5`."""
    mantissa, e, exponent = text.strip().lower().partition("e")
    try:
        number = float(text)
    except ValueError:
        return None
    if not e or not math.isfinite(number):
        return None
    sign = "" if exponent.startswith(("-", "+")) else "+"
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{sign}{exponent}"
