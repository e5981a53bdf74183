"""Labelled texts from TFDS as sequences of words."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from experiments.data.dataset import Arrays, Spec, Splits, as_stored, fingerprint, hold_out
from experiments.data.prepared import Prepared, locate
from experiments.data.records import Records
from experiments.errors import UserError
from experiments.types import Decay, NonNegativeInt, PositiveInt

log = logging.getLogger(__name__)

WORD = re.compile(r"[a-z0-9']+")
UNKNOWN = 0  # the token of words outside the vocabulary, and of padding


@dataclass(frozen=True, kw_only=True)
class Reviews:
    """Labelled texts as sequences of words in lower case, without punctuation.

    The vocabulary is the commonest words of the training texts; all other words share one token. A
    text longer than `length` words is cut off, a shorter one padded; `lengths` holds the number of
    words without padding.

    Args:
        name: of a data set in TFDS with the features text and label and the splits train and test.
        version: None takes the newest prepared.
        dir: folder of prepared data; None means $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        num_classes: None reads it from the data.
        vocabulary: number of tokens, the one of unknown words included.
        length: words of a text that are read.
        validation_fraction: share of the training texts held out.
        split_seed: decides which of them.
        limit: use only so many training texts; None uses all.
        batch_size, eval_batch_size: texts per step; -1 is all of them.
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

    pipeline = staticmethod(as_stored)

    @property
    def spec(self) -> Spec:
        """Shapes and classes; reads the description of the data where `num_classes` is None."""
        tokens, number = ((self.length,), "int32"), ((), "int32")
        stored = {"tokens": tokens, "lengths": number, "label": number}
        classes = self.num_classes or self._prepared.num_classes
        return Spec((self.length, self.vocabulary), classes, self.limit, stored)

    def load(self) -> Splits:
        """Read the texts and make the vocabulary.

        Raises:
            UserError: the data set is unknown, not prepared, damaged, not text or not labelled.
        """
        prepared = self._prepared
        if prepared.num_classes == 0:
            raise UserError(f"the texts of data set {self.name!r} have no label")
        prepared.check("num_classes", self.num_classes, prepared.num_classes)
        train, test = (
            [(WORD.findall(text.lower()), label) for text, label in Records(prepared, part).texts()]
            for part in ("train", "test")
        )
        cut = sum(len(words) > self.length for words, _ in train)
        empty = sum(not words for words, _ in train)
        if cut or empty:
            log.info(
                "Of %d training texts %d are cut off after data.length=%d words, "
                "and %d have no word in the letters a to z",
                *(len(train), cut, self.length, empty),
            )
        order, held_out = hold_out(len(train), self.validation_fraction, self.split_seed)
        counts = Counter(word for i in order for word in train[i][0])
        common = [word for word, _ in counts.most_common(self.vocabulary - 1)]
        numbers = {word: number for number, word in enumerate(common, UNKNOWN + 1)}
        everything = self._arrays(train, numbers)
        content = f"{prepared.fingerprint} {self.vocabulary} {self.length}"
        return Splits(
            train=everything.take(order[: self.limit]),
            validation=everything.take(held_out),
            test=self._arrays(test, numbers),
            class_names=prepared.class_names,
            fingerprint=fingerprint(content.encode()),
        )

    @cached_property
    def _prepared(self) -> Prepared:
        return locate(self.name, self.version, self.dir, kind="text")

    def _arrays(self, texts: list[tuple[list[str], int]], numbers: dict[str, int]) -> Arrays:
        tokens = np.full((len(texts), self.length), UNKNOWN, np.int32)
        lengths = np.ones(len(texts), np.int32)  # an empty text counts as one unknown word
        for row, (words, _) in enumerate(texts):
            codes = [numbers.get(word, UNKNOWN) for word in words[: self.length]]
            tokens[row, : len(codes)] = codes
            lengths[row] = max(len(codes), 1)
        labels = np.array([label for _, label in texts], np.int32)
        return Arrays({"tokens": tokens, "lengths": lengths, "label": labels})
