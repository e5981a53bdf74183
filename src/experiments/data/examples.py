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
from experiments.data.targets import (
    Found,
    Task,
    as_numbers,
    describe_target,
    labels_of,
    missing,
    scale_of,
)
from experiments.errors import UserError
from experiments.types import BatchSize, Decay, Limit, NonNegativeInt, PositiveInt, Sampler

log = logging.getLogger(__name__)


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
    batch_size: BatchSize = 64
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
        whole = Arrays(arrays)
        splits: dict[str, Any] = {part: whole.take(rows) for part, rows in parts.items()}
        return Splits(
            **splits,
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
