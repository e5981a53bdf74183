"""Targets in the user's own data: classes, or numbers and their scale."""

import functools
import logging
from typing import Any, Literal

import numpy as np

from experiments.data.dataset import some
from experiments.errors import UserError

log = logging.getLogger(__name__)
_say_once = functools.cache(log.info)  # a command looks at its data several times

Task = Literal["classification", "regression"]
Found = dict[str, Any]

FEW = 20  # whole numbers of at most so many different values are classes
ROUNDING = 1e-12  # the share of its largest value by which a constant may vary


def tidied(targets: np.ndarray) -> np.ndarray:
    """Return targets [N], or [N, K] of several numbers; one-hot rows become numbers of classes."""
    if targets.ndim == 2 and targets.shape[1] == 1:
        return targets[:, 0]
    if targets.ndim == 2 and targets.dtype.kind in "buif":
        ones = np.isin(targets, (0, 1)).all() and (targets.sum(axis=1) == 1).all()
        return targets.argmax(axis=1) if ones else targets
    return targets


def missing(targets: np.ndarray) -> np.ndarray:
    """Return where a target, or one of several, is missing, bool [N]."""
    if targets.dtype.kind == "f":
        gone = ~np.isfinite(targets)
    elif targets.dtype.kind == "O":
        gone = np.array([value is None for value in targets.ravel()], bool).reshape(targets.shape)
    else:
        gone = np.zeros(targets.shape, bool)
    return gone.any(axis=1) if gone.ndim == 2 else gone


def describe_target(
    targets: np.ndarray, task: Task | None, names: tuple[str, ...], path: str
) -> Found:
    """Return the task that targets are for, and the names of their classes.

    Raises:
        UserError: the task does not go with them.
    """
    there = targets[~missing(targets)]
    if task is None:
        task = "classification" if are_classes(there) else "regression"
        if there.dtype.kind in "iuf" and task == "classification":
            _say_once(
                "%s: %s has few different whole numbers, taken as classes; "
                "for numbers say data.task=regression",
                *(path, some(names)),
            )
    if task == "regression":
        return {"task": task}
    if there.ndim > 1:
        raise UserError(
            f"data.task=classification: {path} has {there.shape[1]} targets; choose one"
        )
    classes = list(dict.fromkeys(class_name(value) for value in np.unique(there).tolist()))
    if len(classes) > max(len(there) // 2, FEW):
        raise UserError(
            f"{path}: {some(names)} has {len(classes)} different values in {len(there)} "
            f"examples, too many for classes: {some(classes)}"
        )
    return {"task": task, "classes": classes}


def are_classes(values: np.ndarray) -> bool:
    """Return whether targets are rather classes than numbers."""
    if values.ndim > 1:
        return False
    if values.dtype.kind not in "iuf":
        return True
    different = np.unique(values)
    if (different != np.round(different)).any():
        return False
    from_zero = len(different) > 0 and different[0] == 0 and different[-1] == len(different) - 1
    return len(different) <= FEW or (from_zero and len(different) <= len(values) // 5)


def class_name(value: Any) -> str:
    """Return the name of the class that a value stands for: 2.0 and 2 are one."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and value == round(value):
        return str(round(value))
    return str(value)


def labels_of(targets: np.ndarray, classes: list[str], path: str) -> np.ndarray:
    """Return the number of each target's class, int32 [N]; of a missing one -1.

    Raises:
        UserError: one is none of the classes.
    """
    there = ~missing(targets)
    different, which = np.unique(targets[there], return_inverse=True)
    names = [class_name(value) for value in different.tolist()]
    numbers = {name: i for i, name in enumerate(classes)}
    if strange := [name for name in names if name not in numbers]:
        raise UserError(
            f"{path} has examples of {some(strange)}, none of the classes that the run "
            f"has learnt: {some(classes)}"
        )
    labels = np.full(len(targets), -1, np.int32)
    labels[there] = np.array([numbers[name] for name in names], np.int32)[which]
    return labels


def as_numbers(targets: np.ndarray, names: tuple[str, ...], path: str) -> np.ndarray:
    """Return targets as float64 [N, K].

    Raises:
        UserError: one is no number.
    """
    if targets.dtype.kind not in "buif":
        value = next(value for value in targets.ravel() if value is not None)
        raise UserError(
            f"data.task=regression: {some(names)} of {path} has {class_name(value)!r}, no number"
        )
    return targets.astype(np.float64).reshape(len(targets), -1)


def scale_of(numbers: np.ndarray, names: tuple[str, ...], path: str) -> Found:
    """Return mean and standard deviation of targets [N, K].

    Raises:
        UserError: a target is the same in all examples.
    """
    mean, deviation = numbers.mean(axis=0), numbers.std(axis=0)
    for i, constant in enumerate(deviation <= ROUNDING * np.abs(numbers).max(axis=0)):
        if constant:
            name = names[i] if len(names) == len(mean) else some(names)
            raise UserError(
                f"{path}: {name} is {mean[i]:g} in all training examples: nothing to predict"
            )
    return {"mean": mean.tolist(), "std": deviation.tolist()}


def stored_targets(target: Found) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and type of what is stored of one example's target."""
    if not target:
        return {}
    if target["task"] == "classification":
        return {"label": ((), "int32")}
    unit: dict[str, tuple[tuple[int, ...], str]] = {"unit": ((), "float32")}
    count = len(target["mean"])
    return {"target": ((count,), "float32")} | (unit if count == 1 else {})
