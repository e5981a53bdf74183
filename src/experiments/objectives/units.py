"""The units of what is logged: nats or bits of log-likelihoods, the data's own of errors.

An objective has an attribute `nats`, the names of its values that are log-likelihoods or
divergences; a loss has one that is true where it is the negative of a log-likelihood.
"""

import math
from collections.abc import Mapping
from typing import Any

from experiments.errors import UserError

STANDARDISED = ("loss", "squared_error")
OWN = ("absolute_error", "rmse", "mae")
"""Values of a regression that are of standardised targets, and of targets in their own unit."""


def check_units(objective: Any, units: str) -> None:
    """Raise `UserError` where bits are asked for of an objective that has no log-likelihood."""
    if units == "bits" and not getattr(objective, "nats", ()):
        raise UserError(
            "trainer.units=bits: this loss is no log-likelihood as cross_entropy, "
            "binary_cross_entropy, nll and the bound of a vae are"
        )


def in_bits(objective: Any, units: str) -> tuple[str, ...]:
    """Return the names of an objective's values that are logged in bits."""
    return tuple(getattr(objective, "nats", ())) if units == "bits" else ()


def units_of(
    objective: Any,
    units: str,
    stored: Mapping[str, Any],
    found: Mapping[str, Any] | None,
    data: Mapping[str, Any],
) -> dict[str, str]:
    """Return in what an objective's values are logged, by name, where that needs to be said.

    Args:
        objective: whose values.
        units: `trainer.units`.
        stored: what is stored of an example; with `unit` the target's own unit is known.
        found: what the data said of themselves, such as the scale of a target.
        data: the config of the data, which names the target.
    """
    scaled = "unit" in stored or "std" in (found or {}).get("target", {})
    if getattr(objective, "kind", "") != "regression" or not scaled:
        return dict.fromkeys(in_bits(objective, units), "bits")
    target = data.get("target") if "column" not in data else data["column"]
    name = target[0] if isinstance(target, list) else target
    own = f"of {name}" if name else "in the data's unit"
    if "unit" not in stored:  # several targets, each with a unit of its own
        own = "standardised"
    return dict.fromkeys(STANDARDISED, "standardised") | dict.fromkeys(OWN, own)


def in_units(values: Mapping[str, Any], objective: Any, units: str) -> dict[str, Any]:
    """Return an objective's values by name, in `units` those that are in nats."""
    bits = in_bits(objective, units)
    return {name: v / math.log(2) if name in bits else v for name, v in values.items()}
