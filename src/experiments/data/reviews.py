"""Labelled texts from TFDS as sequences of words."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from experiments.data import prepared as on_disk
from experiments.data.dataset import Arrays, Spec, Splits
from experiments.data.text import texts_of
from experiments.errors import UserError
from experiments.types import Decay, NonNegativeInt, PositiveInt

WORD = re.compile(r"[a-z0-9']+")
UNKNOWN = 0  # the token of a word that is not in the vocabulary, and of padding


@dataclass(frozen=True, kw_only=True)
class Reviews:
    """Labelled texts, word by word, in lower case and without punctuation.

    The vocabulary is made of the commonest words of the training texts; every other word is one and
    the same token. A text longer than `length` words is cut off, a shorter one filled up; `lengths`
    says how many words are real.

    Args:
        name: of a data set in TFDS with the features text and label and the splits train and test.
        version: None takes the newest prepared.
        dir: folder of prepared data; None means $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        num_classes: None reads it from the data.
        vocabulary: how many tokens there are, the unknown word included.
        length: words of a text that are read.
        validation_fraction: share of the training texts held out.
        split_seed: decides which.
        limit: use only so many training texts; None uses all.
        batch_size, eval_batch_size: texts a step; -1 is all of them.
    """

    name: str
    version: str | None
    dir: str | None
    num_classes: PositiveInt | None
    vocabulary: PositiveInt
    length: PositiveInt
    validation_fraction: Decay
    split_seed: NonNegativeInt
    limit: PositiveInt | None
    batch_size: PositiveInt | Literal[-1]
    eval_batch_size: PositiveInt | Literal[-1]

    @property
    def spec(self) -> Spec:
        stored = {
            "tokens": ((self.length,), "int32"),
            "lengths": ((), "int32"),
            "label": ((), "int32"),
        }
        classes = self.num_classes or self._prepared.num_classes
        return Spec((self.length, self.vocabulary), classes, self.limit, stored)

    @property
    def pipeline(self) -> Words:
        """What the training step applies to each batch."""
        return Words()

    def load(self) -> Splits:
        """Reads the texts and makes the vocabulary.

        Raises:
            UserError: the data set is unknown, not prepared, damaged, not text or not labelled.
        """
        prepared = self._prepared
        if prepared.num_classes == 0:
            raise UserError(f"the texts of data set {self.name!r} have no label")
        if self.num_classes not in (None, prepared.num_classes):
            raise UserError(
                f"data.num_classes is {self.num_classes}, but {self.name!r} has "
                f"{prepared.num_classes} classes: set data.num_classes={prepared.num_classes}"
            )
        train, test = (
            [(WORD.findall(text.lower()), label) for text, label in texts_of(prepared, split)]
            for split in ("train", "test")
        )
        order = np.random.Generator(np.random.PCG64(self.split_seed)).permutation(len(train))
        held_out = round(self.validation_fraction * len(train))
        if not 0 < held_out < len(train):
            raise UserError(
                f"data.validation_fraction={self.validation_fraction} holds out {held_out} of "
                f"{len(train)} texts: choose one that leaves some for training and validation"
            )
        kept = order[held_out:][: self.limit]
        counts = Counter(word for i in order[held_out:] for word in train[i][0])
        common = [word for word, _ in counts.most_common(self.vocabulary - 1)]
        numbers = {word: number for number, word in enumerate(common, UNKNOWN + 1)}
        everything = self._arrays(train, numbers)
        return Splits(
            train=everything.take(kept),
            validation=everything.take(order[:held_out]),
            test=self._arrays(test, numbers),
            class_names=prepared.class_names,
            fingerprint=hashlib.sha256(
                f"{prepared.fingerprint} {self.vocabulary} {self.length}".encode()
            ).hexdigest()[:16],
        )

    @cached_property
    def _prepared(self) -> on_disk.Prepared:
        return on_disk.locate(self.name, self.version, self.dir, kind="text")

    def _arrays(self, texts: list[tuple[list[str], int]], numbers: dict[str, int]) -> Arrays:
        tokens = np.full((len(texts), self.length), UNKNOWN, np.int32)
        lengths = np.ones(len(texts), np.int32)  # of an empty text one unknown word is read
        for row, (words, _) in enumerate(texts):
            codes = [numbers.get(word, UNKNOWN) for word in words[: self.length]]
            tokens[row, : len(codes)] = codes
            lengths[row] = max(len(codes), 1)
        labels = np.array([label for _, label in texts], np.int32)
        return Arrays({"tokens": tokens, "lengths": lengths, "label": labels})


class Words:
    """Texts are stored as a model reads them."""

    def __call__(self, batch: Mapping[str, Any], key: Any = None, *, train: bool) -> dict[str, Any]:
        """The batch as it is."""
        return dict(batch)
