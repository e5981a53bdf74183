"""Examples in a file of the user's own: their targets, splits and scales, whatever the file is."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from experiments.data.dataset import (
    PARTS,
    Arrays,
    Splits,
    absent_classes,
    number_of,
    parts_of,
    some,
)
from experiments.data.sampling import limited
from experiments.errors import UserError
from experiments.types import Decay, Limit, NonNegativeInt, PositiveInt, Sampler

log = logging.getLogger(__name__)

Task = Literal["classification", "regression"]
Found = dict[str, Any]

FEW = 20  # whole numbers of at most so many different values are classes
ROUNDING = 1e-12  # the share of its largest value by which a constant may vary


@dataclass(frozen=True)
class Raw:
    """Examples as a file has them.

    Args:
        inputs: whatever the source makes model inputs of.
        targets: numbers, texts or truth values [N] or [N, K]; None where there are none.
        names: of the targets.
        splits: split of each example, or `ALL`, [N].
        content: identifies the file.
    """

    inputs: Any
    targets: np.ndarray | None
    names: tuple[str, ...]
    splits: np.ndarray
    content: str


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Examples in a file of the user's own, each with a class, with numbers or with nothing.

    What can be told from the data is found in them: which classes there are, and scales, those of
    the training examples alone. A split that the file does not have is drawn from the training
    examples, of classes a share of each.

    Args:
        path: the file.
        task: "classification" or "regression"; None goes by the targets. Text, truth values, whole
            numbers of few different values and those from 0 on without a gap are classes.
        held_out: share of the training examples for validation, and again for test.
        split_seed: decides which these are, and which ones `limit` selects.
        limit: use only so many training examples; or with a float this share of every
            class; None uses all.
        sampler: "balanced" draws training examples so that all classes come equally often.
        batch_size, eval_batch_size: examples per step; -1 is all of them.
        found: what an earlier command found.
    """

    path: str
    task: Task | None = None
    held_out: Decay = 0.15
    split_seed: NonNegativeInt = 0
    limit: Limit = None
    sampler: Sampler = "uniform"
    batch_size: PositiveInt | Literal[-1] = 64
    eval_batch_size: PositiveInt | Literal[-1] = 256
    found: dict[str, Any] | None = None

    def _read(self) -> Raw:
        """Read the file."""
        raise NotImplementedError

    def _describe(self, inputs: Any, rows: np.ndarray) -> Found:
        """Return what is to be known of the inputs, from the training examples at `rows`."""
        raise NotImplementedError

    def _encode(self, inputs: Any, found: Found) -> tuple[str, np.ndarray]:
        """Return the name of the model's input and its values [N, ...]."""
        raise NotImplementedError

    def encoded(self, inputs: Any) -> np.ndarray:
        """Return inputs [N, ...] as those of the run are stored."""
        return self._encode(inputs, self._found)[1]

    @cached_property
    def _raw(self) -> Raw:
        return self._read()

    @property
    def predicts(self) -> Task | None:
        """What the targets ask for."""
        return self._found["target"].get("task")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, if the targets are classes."""
        return tuple(self._found["target"].get("classes", ()))

    @property
    def outputs(self) -> int:
        """The number of classes or of numbers to predict; 1 where there are no targets."""
        target = self._found["target"]
        return len(target.get("classes") or target.get("mean") or [0])

    @cached_property
    def _target(self) -> Found:
        """The description of the target, without its scale."""
        if self.found:
            return self.found["target"]
        if self._raw.targets is None:
            return {}
        return describe_target(self._raw.targets, self.task, self._raw.names, self.path)

    @cached_property
    def _parts(self) -> dict[str, np.ndarray]:
        """The indices of the examples of each split; an example without a target is in none."""
        raw, there = self._raw, np.arange(len(self._raw.splits))
        labels = np.zeros(len(there), np.int32)
        if raw.targets is not None:
            there = np.flatnonzero(~missing(raw.targets))
            if not len(there):
                raise UserError(f"{self.path}: {some(raw.names)} is missing in all rows")
            if self._target["task"] == "classification":
                labels = labels_of(raw.targets, self._target["classes"], self.path)
        parts = parts_of(raw.splits[there], labels[there], self.held_out, self.split_seed)
        for part, chosen in parts.items():
            if not len(chosen):
                raise UserError(
                    f"{self.path} has no examples for {part}: {len(there)} in all; "
                    f"data.held_out={self.held_out} is drawn from each class of 3 and more"
                )
        return {part: there[parts[part]] for part in PARTS}

    @cached_property
    def _found(self) -> Found:
        if self.found:
            return self.found
        train, target = self._parts["train"], dict(self._target)
        if target.get("task") == "regression":
            assert self._raw.targets is not None
            numbers = as_numbers(self._raw.targets, self._raw.names, self.path)[train]
            target |= scale_of(numbers, self._raw.names, self.path)
        return {**self._describe(self._raw.inputs, train), "target": target}

    def encode(self, inputs: Any) -> tuple[str, np.ndarray]:
        """Return the name and the values of a model's input for other examples than the file's."""
        return self._encode(inputs, self._found)

    def decode(self, outputs: np.ndarray) -> np.ndarray:
        """Return outputs of a regression [N, K] in the units of the targets."""
        target = self._found["target"]
        return outputs * np.float32(target["std"]) + np.float32(target["mean"])

    def load(self) -> Splits:
        """Read the file.

        Raises:
            UserError: there is no such file, it cannot be read, a value is none of its kind, a
                class is none of those found earlier, or a split is empty.
        """
        raw, found, parts = self._raw, self._found, self._parts
        train = parts["train"]
        if isinstance(self.limit, int) and self.limit > len(train):
            raise UserError(
                f"data.limit is {self.limit}, but {self.path} has {len(train)} training examples"
            )
        name, inputs = self._encode(raw.inputs, found)
        arrays = {name: inputs, **self._encoded_targets(raw, found["target"])}
        parts = parts | {"train": np.sort(limited(train, self.limit, arrays.get("label")))}
        classes = self.class_names
        self._say(raw, parts, arrays, classes)
        return Splits(
            **{part: Arrays(arrays).take(rows) for part, rows in parts.items()},
            class_names=classes,
            fingerprint=raw.content,
            found=found,
        )

    def _encoded_targets(self, raw: Raw, target: Found) -> dict[str, np.ndarray]:
        if raw.targets is None or not target:
            return {}
        if target["task"] == "classification":
            return {"label": labels_of(raw.targets, target["classes"], self.path)}
        numbers = as_numbers(raw.targets, raw.names, self.path)
        scaled = (numbers - target["mean"]) / target["std"]
        arrays = {"target": scaled.astype(np.float32)}
        if len(target["std"]) == 1:  # of several targets each has a unit of its own
            arrays["unit"] = np.full(len(scaled), target["std"][0], np.float32)
        return arrays

    def _say(
        self, raw: Raw, parts: Mapping[str, np.ndarray], arrays: dict, classes: tuple[str, ...]
    ) -> None:
        """Log what was found, and what is left out."""
        total = sum(map(len, parts.values()))
        of = number_of(classes, "class") if classes else "no targets"
        if "target" in arrays:
            of = f"regression of {some(raw.names)}"
        shape = "x".join(map(str, next(iter(arrays.values())).shape[1:]))
        counts = ", ".join(f"{len(rows)} for {part}" for part, rows in parts.items())
        log.info("%s: %d examples of shape %s, %s; %s", self.path, total, shape, of, counts)
        if raw.targets is not None and (lost := int(missing(raw.targets).sum())):
            log.warning("%s: left out, as %s is missing: %d", self.path, some(raw.names), lost)
        if classes:
            for part, absent in absent_classes(parts, arrays["label"], classes):
                log.warning("%s: no examples for %s of %s", self.path, part, some(absent))


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
            log.info(
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
