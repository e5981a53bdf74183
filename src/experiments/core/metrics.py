"""The metrics of an evaluation: those that go with the objective, and those that a config names."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.core.config import build, locate
from experiments.errors import UserError, suggest
from experiments.objectives.metrics import Statistic

if TYPE_CHECKING:
    from experiments.core.experiment import Experiment

Metrics = Mapping[str, Any]  # by name: functions of (predictions, batch), and `Statistic`s
Tree = Any


def metrics_of(config: Mapping[str, Any], objective: Any) -> dict[str, Any]:
    """Return the metrics of an objective and those of `metrics:`, by name.

    Raises:
      UserError: two have one name.
    """
    found = dict(getattr(objective, "metrics", {}))
    for name, node in (config.get("metrics") or {}).items():
        if name in found:
            raise _taken(name)
        function = not inspect.isclass(locate(node["_target_"]))
        found[name] = build({**node, "_partial_": function})
    return found


def sums_of(
    metrics: Metrics, values: Metrics, predictions: Any, batch: Mapping[str, jax.Array]
) -> dict[str, Tree]:
    """Return the sums of each metric over a batch, padding left out, and `count`; inside a trace.

    Args:
      values: of each example [batch], by name, which the objective gave.
      batch: has a `mask` [batch], 0 on padding.

    Raises:
      UserError: a metric does not give one value for each example, or has a name of `values`.
    """
    mask = batch["mask"]

    def without_padding(array: jax.Array) -> jax.Array:
        if array.shape[:1] != mask.shape:
            return array
        return jnp.where(mask.reshape(-1, *[1] * (array.ndim - 1)) > 0, array, 0)

    # a padded example counts for nothing, even where the model makes a NaN of it
    sums: dict[str, Tree] = {
        name: jnp.sum(jnp.where(mask > 0, value * mask, 0)) for name, value in values.items()
    }
    predictions = jax.tree.map(without_padding, predictions)
    for name, metric in metrics.items():
        if name in sums:
            raise _taken(name)
        if isinstance(metric, Statistic):
            sums[name] = metric.sums(predictions, batch)
            continue
        try:
            own = jnp.asarray(metric(predictions, batch))
        except jax.errors.TracerArrayConversionError as error:
            raise UserError(
                f"metrics.{name}: it is computed on the device: use jax.numpy in place of numpy"
            ) from error
        if own.shape != mask.shape:
            raise UserError(
                f"metrics.{name}: must give one value for each example, {list(mask.shape)}, not "
                f"{list(own.shape)}"
            )
        sums[name] = jnp.sum(jnp.where(mask > 0, own * mask, 0))
    return sums | {"count": jnp.sum(mask)}


def scalars_of(metrics: Metrics, sums: Mapping[str, Tree]) -> dict[str, np.ndarray]:
    """Return each metric's scalars [trials] of the sums [trials, ...] over all examples.

    Raises:
      UserError: two have one name.
    """
    totals = {name: total for name, total in sums.items() if name not in statistics(metrics)}
    count = totals.pop("count")
    scalars = {name: total / count for name, total in totals.items()}
    for name, statistic in statistics(metrics).items():
        for scalar, values in statistic.scalars(sums[name]).items():
            if scalar in scalars:
                raise _taken(scalar)
            scalars[scalar] = values
    return scalars


def complaint_about(experiment: "Experiment", metric: str) -> str | None:
    """Return None if this is a metric of the validation, else the names that it may have.

    What the objective itself goes by needs no look; other metrics are found by shapes alone.
    """
    if metric in ("loss", experiment.objective({}).monitor[0]):
        return None
    batch = {
        name: jax.ShapeDtypeStruct((2, *shape), dtype)
        for name, (shape, dtype) in {**experiment.spec.stored, "mask": ((), "float32")}.items()
    }
    there = experiment.measured(batch, {})
    if metric in there:
        return None
    return "no such metric" + (suggest(metric, there) or f"; there are {', '.join(sorted(there))}")


def statistics(metrics: Metrics) -> dict[str, Statistic]:
    """Return those of the metrics that are no means over examples."""
    return {name: metric for name, metric in metrics.items() if isinstance(metric, Statistic)}


def _taken(name: str) -> UserError:
    return UserError(f"metrics.{name}: there is a metric of that name already; choose another")
