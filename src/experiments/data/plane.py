"""Points in the plane: small problems whose solution can be drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from experiments.data.dataset import Arrays, Spec, Splits, as_stored
from experiments.data.sampling import count_of, limited
from experiments.types import BatchSize, Limit, NonNegative, NonNegativeInt, Positive, PositiveInt


@dataclass(frozen=True, kw_only=True)
class Plane:
    """The arguments and methods that all points in the plane share.

    Args:
        examples: for training.
        held_out: for validation, and again for test.
        noise: standard deviation of the normal noise on both coordinates.
        split_seed: decides which points these are.
        limit: use only so many training examples; or with a float this share of every class; None
            uses all.
        batch_size, eval_batch_size: examples per step; -1 is all of them.
    """

    examples: PositiveInt
    held_out: PositiveInt
    noise: NonNegative
    split_seed: NonNegativeInt
    limit: Limit
    batch_size: BatchSize
    eval_batch_size: PositiveInt | Literal[-1]

    pipeline = staticmethod(as_stored)

    @property
    def classes(self) -> int:
        """The number of classes."""
        return 2

    @property
    def spec(self) -> Spec:
        examples = min(count_of(self.limit, self.examples), self.examples)
        stored: Any = {"sequence": ((2,), "float32"), "label": ((), "int32")}
        return Spec((2,), self.classes, examples, stored)

    def load(self) -> Splits:
        """Draw the points of all splits."""
        splits: dict[str, Any] = {}
        sizes = {"train": self.examples, "validation": self.held_out, "test": self.held_out}
        for number, (name, size) in enumerate(sizes.items()):
            rng = np.random.default_rng([self.split_seed, number])
            # the classes in turn, so that the first of any number are balanced
            labels = np.arange(size) % self.classes
            points = self.points(labels, rng) + self.noise * rng.normal(size=(size, 2))
            arrays = {"sequence": points.astype(np.float32), "label": labels.astype(np.int32)}
            rows = np.arange(size)
            if name == "train":
                rows = np.sort(limited(rows, self.limit, labels))
            splits[name] = Arrays(arrays).take(rows)
        return Splits(**splits, class_names=(), fingerprint=repr(self))

    def points(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw a point [N, 2] without noise for each class in `labels` [N]."""
        raise NotImplementedError


class Xor(Plane):
    """Exclusive or: (0, 0) and (1, 1) are of class 0, (0, 1) and (1, 0) of class 1.

    No line separates the classes (Minsky & Papert 1969, "Perceptrons").
    """

    def points(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        first = np.arange(len(labels)) // 2 % 2  # all four corners equally often
        return np.stack([first, first ^ labels], axis=1)


class Moons(Plane):
    """Two half circles of radius 1 that reach into each other."""

    def points(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        angle = np.pi * rng.uniform(size=len(labels))
        upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        lower = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], axis=1)
        return np.where(labels[:, None] == 0, upper, lower)


@dataclass(frozen=True, kw_only=True)
class Groups(Plane):
    """Several groups of points, a class each.

    Args:
        count: number of classes.
    """

    count: PositiveInt

    @property
    def classes(self) -> int:
        return self.count

    def around(self, turns: np.ndarray) -> np.ndarray:
        """Return the points [N, 2] of the unit circle at so many `turns` [N]."""
        return np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], axis=1)


@dataclass(frozen=True, kw_only=True)
class Blobs(Groups):
    """Normal clouds, evenly spaced on a circle.

    Args:
        radius: of the circle.
    """

    radius: Positive

    def points(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.radius * self.around(labels / self.count)


class Spirals(Groups):
    """Spirals of 1 1/4 turns that begin in the middle, a class each, turned against each other.

    References:
        Lang & Witbrock 1988, "Learning to tell two spirals apart" (there of three turns).
    """

    def points(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        radius = 0.1 + 0.9 * np.sqrt(rng.uniform(size=len(labels)))  # as dense outside as inside
        return radius[:, None] * self.around(1.25 * radius + labels / self.count)
