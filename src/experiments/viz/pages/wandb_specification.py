"""The one use of a private method of wandb-workspaces: the specification that it saves.

A dashboard has no public method that returns its specification, which is needed to write it to a
file without an account.
"""

import json
from typing import Any


def specification(dashboard: Any) -> dict[str, Any]:
    """Return what W&B stores of a saved view or a report."""
    model = dashboard._to_model()
    return json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
