"""Text: characters, each predicted from those before it, and words, of which a label is."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from experiments.data.dataset import Arrays, Spec, Splits, as_stored, cut, fingerprint, hold_out
from experiments.data.reading.prepared import Prepared, locate
from experiments.data.reading.records import Records
from experiments.data.sampling import count_of, known_count, limited
from experiments.errors import UserError, unusable
from experiments.machine import expanded
from experiments.types import BatchSize, Decay, Limit, NonNegativeInt, PositiveInt, Sampler

log = logging.getLogger(__name__)

WORD = re.compile(r"[a-z0-9']+")
UNKNOWN = 0  # the token of words outside the vocabulary, and of padding


def shifted(batch: Mapping[str, Any], key: Any = None, *, train: bool) -> dict[str, Any]:
    """Turn `text` int [B, T + 1] into `tokens` and, one later, `target` int32 [B, T]."""
    rest = {name: value for name, value in batch.items() if name != "text"}
    text = batch["text"].astype(jnp.int32)
    return {"tokens": text[:, :-1], "target": text[:, 1:], **rest}


@dataclass(frozen=True, kw_only=True)
class Text:
    """The characters of a text, from TFDS or from a file of the user's own.

    Training reads windows of `length` characters. With `streams` the text is cut into so many long
    pieces, and a batch holds the next window of each, in order, so that a model can carry its state
    from batch to batch (truncated back-propagation through time). The remainder at the end of a
    piece is not read. Validation and test are scored in windows of `eval_length`, in each of which
    the model starts from its initial state; a last window that is too short is left out.

    Args:
        name: of the data set in TFDS; one long text in each of its splits train, validation, test.
        path: a text file (UTF-8) in place of that; its end is held out. A byte-order mark is no
            part of the text, and every end of a line is one character.
        version: None takes the newest prepared.
        dir: folder of prepared data; None means $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        num_classes: different characters; None counts them.
        length, eval_length: characters of a window.
        streams: windows of a batch that continue those of the batch before; as many as
            `batch_size`. None takes windows in random order.
        held_out: share of a file for validation, and again for test.
        limit: use only so many training windows; or with a float this share; None
            uses all.
        batch_size, eval_batch_size: windows per step; -1 is all of them.
    """

    name: str | None
    path: str | None
    version: str | None
    dir: str | None
    num_classes: PositiveInt | None
    length: PositiveInt
    eval_length: PositiveInt
    streams: PositiveInt | None
    held_out: Decay
    limit: Limit
    batch_size: PositiveInt | Literal[-1]
    eval_batch_size: PositiveInt | Literal[-1]

    pipeline = staticmethod(shifted)

    @property
    def spec(self) -> Spec:
        """Shapes and classes; reads the text only where `num_classes` is None."""
        size = self.num_classes or len(self._characters)
        stored: dict[str, Any] = {"text": ((self.length + 1,), np.min_scalar_type(size - 1).name)}
        if self.streams is not None:
            stored["restart"] = ((), "bool")
        examples = known_count(self.limit)
        examples = examples and max(examples, self.streams or 0)  # a batch at least
        return Spec((self.length, size), size, examples, stored)

    def load(self) -> Splits:
        """Read the text.

        Raises:
            UserError: it is not there, not text, too short, or not as the config says.
        """
        characters = self._characters
        if self.num_classes not in (None, len(characters)):
            raise UserError(
                f"data.num_classes is {self.num_classes}, but the text has {len(characters)} "
                f"different characters: set data.num_classes={len(characters)}"
            )
        codes = {split: encode(text, characters) for split, text in self._texts.items()}
        shortest = min(len(codes["validation"]), len(codes["test"]))
        scored = min(self.eval_length, shortest - 1)
        if scored < 1:
            raise UserError("data.held_out leaves no text for validation and test: raise it")
        return Splits(
            train=self._training(codes["train"]),
            validation=Arrays({"text": _windows(codes["validation"], scored)}),
            test=Arrays({"text": _windows(codes["test"], scored)}),
            class_names=tuple(characters),
            fingerprint=fingerprint("\0".join(self._texts.values()).encode()),
        )

    def _training(self, codes: np.ndarray) -> Arrays:
        if len(codes) <= self.length:
            raise UserError(
                f"data.length={self.length}: the training text has {len(codes)} characters, "
                f"too few for one window; use at most {len(codes) - 1}"
            )
        if self.streams is None:
            windows = _windows(codes, self.length)
            return Arrays({"text": windows[: count_of(self.limit, len(windows))]})
        if self.streams != self.batch_size:
            raise UserError(
                f"data.streams={self.streams} and data.batch_size={self.batch_size}: a batch holds "
                f"one window of each stream; make them equal, or set data.streams=null"
            )
        piece = (len(codes) - 1) // self.streams
        steps = piece // self.length
        if steps == 0:
            raise UserError(
                f"data.streams={self.streams}: pieces of {piece} characters are shorter than the "
                f"window; lower data.streams (data.batch_size) or data.length={self.length}"
            )
        most = count_of(self.limit, steps * self.streams)
        steps = min(steps, max(most // self.streams, 1))
        starts = range(0, self.streams * piece, piece)
        pieces = [_windows(codes[start : start + piece + 1], self.length) for start in starts]
        text = np.stack(pieces, axis=1)[:steps].reshape(-1, self.length + 1)
        restart = np.arange(len(text)) < self.streams
        return Arrays({"text": text, "restart": restart}, ordered=True)

    @cached_property
    def _texts(self) -> dict[str, str]:
        if (self.name is None) == (self.path is None):
            raise UserError("set either data.name (of a text in TFDS) or data.path (a file)")
        if self.path is None:
            found = locate(str(self.name), self.version, self.dir, kind="text")
            return {
                split: "\n".join(text for text, _ in Records(found, split).texts())
                for split in ("train", "validation", "test")
            }
        try:
            text = expanded(self.path).read_text(encoding="utf-8-sig")
        except OSError as error:
            raise unusable("data.path", self.path, error) from error
        except UnicodeDecodeError as error:
            raise UserError(f"data.path={self.path}: not UTF-8 text ({error.reason})") from error
        return cut(text, self.held_out)

    @cached_property
    def _characters(self) -> str:
        """The different characters of the whole text, sorted."""
        return "".join(sorted(set().union(*self._texts.values())))


def encode(text: str, characters: str) -> np.ndarray:
    """Return the number of each character, in the smallest type that holds all of them.

    Raises:
        UserError: a character is not among `characters`.
    """
    numbers = {character: number for number, character in enumerate(characters)}
    unknown = sorted(set(text) - set(numbers))
    if unknown:
        shown = ", ".join(repr(character) for character in unknown[:10])
        raise UserError(f"the training text has no {shown}")
    smallest = np.min_scalar_type(len(characters) - 1)
    return np.fromiter((numbers[c] for c in text), smallest, len(text))


def _windows(codes: np.ndarray, length: int) -> np.ndarray:
    """Return windows [N, length + 1], each of which ends with the first character of the next."""
    return np.lib.stride_tricks.sliding_window_view(codes, length + 1)[::length]


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
        limit: use only so many training texts; or with a float this share of
            every class; None uses all.
        sampler: "balanced" draws training texts so that all classes come equally often.
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
    limit: Limit
    sampler: Sampler
    batch_size: BatchSize
    eval_batch_size: PositiveInt | Literal[-1]

    pipeline = staticmethod(as_stored)

    @property
    def spec(self) -> Spec:
        """Shapes and classes; reads the description of the data where `num_classes` is None."""
        tokens, number = ((self.length,), "int32"), ((), "int32")
        stored = {"tokens": tokens, "lengths": number, "label": number}
        classes = self.num_classes or self._prepared.num_classes
        return Spec((self.length, self.vocabulary), classes, known_count(self.limit), stored)

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
            train=everything.take(limited(order, self.limit, everything.arrays["label"])),
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
