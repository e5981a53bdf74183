"""The search space of a command line, in W&B's schema.

optim=adam,sgd                                  one of the choices
model.dropout=choice(0.0,0.2,0.5)               one of the values
model=glob(*)                                   one of the group's choices with such a name
seed=range(8)                                   0 to 7
optim.learning_rate=tag(log,interval(1e-5,1e-1))    log-uniform
model.width=int(tag(log,interval(8,512)))           the same in whole numbers
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString

from experiments.errors import UserError

Node = dict[str, Any]


def split(overrides: Sequence[Override]) -> tuple[dict[str, Node], list[str]]:
    """(parameters in W&B's schema, plain overrides) of a parsed command line.

    Raises:
        UserError: a sweep that W&B's schema has no word for.
    """
    parameters: dict[str, Node] = {}
    plain: list[str] = []
    for override in overrides:
        assert override.input_line is not None
        if not override.is_sweep_override():
            plain.append(override.input_line)
        elif override.is_add() or override.is_force_add() or override.package is not None:
            raise UserError(f"{override.input_line}: only keys that the config has can be searched")
        else:
            parameters[override.key_or_group] = parameter(override)
    return parameters, plain


def parameter(override: Override) -> Node:
    """One sweep override as an entry of W&B's `parameters`."""
    sweep = override.value()
    if not isinstance(sweep, IntervalSweep):
        values = [_plain(value) for value in override.sweep_iterator()]
        if not values:
            raise UserError(f"{override.input_line}: there is nothing to choose from")
        return {"values": values}
    if sweep.start is None or sweep.end is None:
        raise UserError(f"{override.input_line}: an interval has two ends")
    unknown = sorted(sweep.tags - {"log"})
    if unknown:
        raise UserError(f"{override.input_line}: {unknown[0]!r} is no tag; there is log")
    low, high = sweep.start, sweep.end
    whole = isinstance(low, int) and isinstance(high, int)  # by int(...)
    if "log" in sweep.tags:
        if low <= 0:
            raise UserError(f"{override.input_line}: a range on a log scale must lie above 0")
        kind = {"distribution": "log_uniform_values", "min": low, "max": high}
        return kind | {"distribution": "q_log_uniform_values", "q": 1} if whole else kind
    kind = {"distribution": "int_uniform" if whole else "uniform", "min": low, "max": high}
    return kind


def _plain(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    return [_plain(item) for item in value] if isinstance(value, list) else value
