"""The one use of a private method of wandb-workspaces: the specification that it saves.

A dashboard has no public method that returns its specification. It is needed to write the dashboard
to a file without an account, and to correct references to config values before it is saved.
"""

import json
import re
from typing import Any


def specification(dashboard: Any) -> dict[str, Any]:
    """Return what W&B stores of a saved view or a report."""
    return json.loads(_specification(dashboard._to_model()))


def with_flat_keys(dashboard: Any) -> Any:
    """Make a dashboard refer to config values by flat keys, such as `optim.learning_rate`.

    wandb-workspaces takes the dots of a key for levels and writes `optim.value.learning_rate`.
    """
    to_model = dashboard._to_model

    def to_model_with_flat_keys() -> Any:
        model = to_model()
        flat = re.sub(
            r'"config([:.])(\w+)\.value\.([\w.]+)"',
            r'"config\1\2.\3.value"',
            _specification(model),
        )
        model.spec = type(model.spec).model_validate_json(flat)
        return model

    # a pydantic dataclass refuses attributes that are no fields
    object.__setattr__(dashboard, "_to_model", to_model_with_flat_keys)
    return dashboard


def _specification(model: Any) -> str:
    return model.spec.model_dump_json(by_alias=True, exclude_none=True)
