"""Examples in arrays of NumPy: images, vectors or sequences, with or without targets."""

import functools
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from experiments.data.dataset import ALL, PARTS, SPLITS, Spec, as_stored, fingerprint, some, stamp
from experiments.data.examples import Examples, Raw
from experiments.data.pipeline import Augment, Pipeline
from experiments.data.sampling import known_count
from experiments.data.targets import ROUNDING, Found, stored_targets, tidied
from experiments.errors import UserError, suggest, unusable
from experiments.machine import expanded
from experiments.types import PositiveInt

Kind = Literal["image", "sequence", "vector"]

INPUTS = ("x", "inputs", "images", "image", "data", "features")
MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"\x93NUM")  # what .npz and .npy files begin with
TARGETS = ("y", "targets", "target", "labels", "label")


@dataclass(frozen=True, kw_only=True)
class ArrayFile(Examples):
    """Images, vectors or sequences in an `.npz` or `.npy` file.

    An `.npz` file holds inputs (`x`, `images`, ...) and perhaps targets (`y`, `labels`, ...), for
    each split with its name before or behind: `x_train`, `test_images`. Images are [N, H, W, C], or
    [N, H, W] of bytes; sequences [N, steps, features]; vectors [N, features]. Images of other
    numbers than bytes are scaled from 0..1, or else from the range of the training examples.

    Args:
        inputs: name of the inputs in an `.npz` file; None finds them.
        targets: the same of the targets, or beside `x.npy` the file of these.
        kind: "image", "sequence" or "vector"; None goes by the shape.
        mean, std: of each channel of images, for pixels in 0..1; None means those of the training
            examples.
        augment, crop_size, resize: of images, see `Images`.
        path, task, held_out and the others: see `Examples`.
    """

    inputs: str | None = None
    targets: str | None = None
    kind: Kind | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    augment: Augment = field(default_factory=Augment)
    crop_size: PositiveInt | None = None
    resize: bool = True

    @property
    def spec(self) -> Spec:
        """Shapes and classes, as found in the file or earlier."""
        shape, image = tuple(self._found["shape"]), self._found["kind"] == "image"
        name = "image" if image else "sequence"
        stored = {name: (shape, self._found["type"])} | stored_targets(self._found["target"])
        if image and (side := self.crop_size):
            if side > min(shape[:2]):
                raise UserError(f"data.crop_size={side} is more than the images have")
            shape = (side, side, shape[2])
        return Spec(shape, self.outputs, known_count(self.limit), stored)

    @property
    def pipeline(self) -> Any:
        """The part of the training step that prepares each batch."""
        if self._found["kind"] != "image":
            return as_stored
        mean, std = self.mean or self._found["mean"], self.std or self._found["std"]
        channels = self._found["shape"][-1]
        if len(mean) != channels or len(std) != channels:
            raise UserError(f"data.mean and data.std: the images have {channels} channels")
        return Pipeline(tuple(mean), tuple(std), self.outputs, self.augment, self.crop_size)

    def _read(self) -> Raw:
        return read_arrays(self.path, self.inputs, self.targets, stamp(self.path))

    def _describe(self, inputs: np.ndarray, rows: np.ndarray) -> Found:
        kind = self.kind or kind_of(inputs)
        wanted = {"image": (3, 4), "sequence": (3,), "vector": tuple(range(1, 9))}[kind]
        if inputs.ndim not in wanted:
            shape = "x".join(map(str, inputs.shape))
            raise UserError(f"data.kind={kind}: the inputs of {self.path} are {shape}")
        train = shaped(inputs[rows], kind)
        found: Found = {"kind": kind, "shape": list(train.shape[1:]), "type": "float32"}
        if kind == "image":
            if train.dtype == np.uint8:
                found["type"], found["range"] = "uint8", [0, 255]
            else:
                low, high = float(train.min()), float(train.max())
                found["range"] = [0.0, 1.0] if low >= 0 and high <= 1 else [low, high]
            low, high = found["range"]
            axes = tuple(range(train.ndim - 1))
            mean, deviation = train.mean(axes, np.float64), train.std(axes, np.float64)
            size = high - low or 1.0
            return found | {
                "mean": [round(v, 4) for v in ((mean - low) / size).tolist()],
                "std": [max(round(v, 4), 1e-3) for v in (deviation / size).tolist()],
            }
        axes = (0,) if kind == "vector" else (0, 1)
        mean, deviation = train.mean(axes, np.float64), train.std(axes, np.float64)
        deviation[deviation <= ROUNDING * np.abs(train).max(axes)] = 1.0
        return found | {"mean": mean.tolist(), "std": deviation.tolist()}

    def _encode(self, inputs: np.ndarray, found: Found) -> tuple[str, np.ndarray]:
        values = shaped(inputs, found["kind"])
        if list(values.shape[1:]) != found["shape"]:
            there, wanted = ("x".join(map(str, s)) for s in (values.shape[1:], found["shape"]))
            raise UserError(f"{self.path} has inputs of {there}; the run has learnt {wanted}")
        if found["kind"] == "image":
            low, high = found["range"]
            if (values.dtype == np.uint8) != (found["type"] == "uint8"):
                raise UserError(
                    f"{self.path} has images of {values.dtype}; the run has learnt "
                    f"{found['type']} from {low:g} to {high:g}"
                )
            if found["type"] == "uint8":
                return "image", np.asarray(values, np.uint8)
            return "image", ((values - low) * (255 / (high - low or 1.0))).astype(np.float32)
        return "sequence", ((values - found["mean"]) / found["std"]).astype(np.float32)


@functools.lru_cache(maxsize=1)  # a command asks for the shapes and for the examples
def read_arrays(path: str, inputs: str | None, targets: str | None, _stamp: Any) -> Raw:
    """Read inputs and targets of every split that a file has; `_stamp` tells that it has changed.

    Raises:
        UserError: it cannot be read, or what is in it is not clear or of different lengths.
    """
    arrays = _load(path)
    if len(arrays) == 1 and targets is not None and targets.endswith(".npy"):
        arrays |= {"y": _load(targets)["x"]}
        targets = None
    found: dict[str, dict[str, np.ndarray]] = {}  # of each split, inputs and targets
    for name, array in arrays.items():
        base, split = split_name(name)
        for role, said, usual in (("x", inputs, INPUTS), ("y", targets, TARGETS)):
            if base == said.lower() if said else base in usual:
                found.setdefault(split, {})[role] = array
    if len(arrays) == 1 and not found and inputs is None:
        found = {ALL: {"x": next(iter(arrays.values()))}}
    for given, names in ((inputs, "inputs"), (targets, "targets")):
        role = "x" if names == "inputs" else "y"
        if not any(role in one for one in found.values()) and (given or role == "x"):
            said = f"no {names} {given!r}" if given else f"no {names} that can be told"
            hint = suggest(given or "", arrays)
            raise UserError(f"data.path={path} has {said}, only {some(list(arrays))}{hint}")
    parts = {split: found[split] for split in (ALL, *PARTS) if "x" in found.get(split, {})}
    labelled = {split: one for split, one in parts.items() if "y" in one}
    if labelled:
        parts = labelled
    for split, one in parts.items():
        sizes = {role: len(array) for role, array in one.items()}
        if len(set(sizes.values())) > 1:
            raise UserError(
                f"data.path={path}: {sizes['x']} inputs and {sizes['y']} targets"
                + ("" if split == ALL else f" for {split}")
            )
    every = [one["x"] for one in parts.values()]
    if len({array.shape[1:] for array in every}) > 1:
        raise UserError(f"data.path={path}: the inputs of its splits differ in shape")
    whole = every[0] if len(every) == 1 else np.concatenate(every)
    if whole.dtype.kind not in "buif":
        raise UserError(f"data.path={path}: the inputs are no numbers, but {whole.dtype}")
    if whole.dtype.kind == "f" and (bad := int((~np.isfinite(whole)).sum())):
        raise UserError(f"data.path={path}: {bad} values of the inputs are no finite numbers")
    labels = [one["y"] for one in parts.values()] if labelled else None
    splits = np.concatenate([np.full(len(one["x"]), split) for split, one in parts.items()])
    content = [fingerprint(np.ascontiguousarray(array).tobytes()) for array in every]
    if labels is not None:
        content += [fingerprint(repr(one.tolist()).encode()) for one in labels]
    joined = None if labels is None else tidied(np.concatenate(labels))
    return Raw(whole, joined, ("the target",), splits, fingerprint("".join(content).encode()))


def _load(path: str) -> dict[str, np.ndarray]:
    where = expanded(path)
    try:
        with where.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise unusable("data.path", path, error) from error
    if magic not in MAGIC:
        raise UserError(
            f"data.path={path} is no file of NumPy arrays, .npz or .npy; "
            f"a table is data=table, a text data=text"
        )
    try:
        if where.suffix == ".npy":
            return {"x": np.load(where, allow_pickle=False)}
        with np.load(where, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # of zipfile, zlib and NumPy
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        pickled = "Object arrays" in said
        raise UserError(
            f"data.path={path} cannot be read: "
            + ("it holds Python objects; save arrays of numbers or text" if pickled else said)
        ) from error


def split_name(name: str) -> tuple[str, str]:
    """Split the name of an array, such as `x_train`, into what it is and its split."""
    words = name.lower().replace("-", "_").split("_")
    for i in (0, -1):
        if len(words) > 1 and words[i] in SPLITS:
            rest = words[1:] if i == 0 else words[:-1]
            return "_".join(rest), SPLITS[words[i]]
    return "_".join(words), ALL


def kind_of(inputs: np.ndarray) -> Kind:
    """Return what inputs of a shape and type usually are."""
    if inputs.ndim == 4 or (inputs.ndim == 3 and inputs.dtype == np.uint8):
        return "image"
    return "sequence" if inputs.ndim == 3 else "vector"


def shaped(inputs: np.ndarray, kind: Kind) -> np.ndarray:
    """Return images as [N, H, W, C] and vectors as [N, features]."""
    if kind == "vector":
        return inputs.reshape(len(inputs), -1)
    if kind == "image" and inputs.ndim == 3:
        return inputs[..., None]
    if kind == "image" and inputs.shape[1] in (1, 3) and inputs.shape[3] not in (1, 3, 4):
        return np.moveaxis(inputs, 1, -1)  # as PyTorch has them
    return inputs
