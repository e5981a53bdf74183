"""The unit of log-likelihoods in what is logged: nats, by which gradients are taken, or bits.

An objective has an attribute `nats`, the names of its values that are log-likelihoods or
divergences; a loss has one that is true where it is the negative of a log-likelihood.
"""

import math
from collections.abc import Mapping
from typing import Any

from experiments.errors import UserError


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


def in_units(values: Mapping[str, Any], objective: Any, units: str) -> dict[str, Any]:
    """Return an objective's values by name, in `units` those that are in nats."""
    bits = in_bits(objective, units)
    return {name: v / math.log(2) if name in bits else v for name, v in values.items()}
