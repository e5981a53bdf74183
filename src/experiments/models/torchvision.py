"""PyTorch weights, in the names and layouts of this project's models, and back.

The files have the names of torchvision's `state_dict`. PyTorch has convolution kernels as [out, in,
*window] and dense ones as [out, in]; here they are [*window, in, out] and [in, out]. The inputs of
a dense layer after a flattened map are ordered by channel in PyTorch, by pixel here.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import UserError
from experiments.models.resnet import MANY

# arrays of a module in PyTorch and here; `weight` is `scale` or `kernel`, by its rank
LEAVES = {"bias": "bias", "running_mean": "mean", "running_var": "var"}

# a module's name in the file and here; `{n}` is a number, `{n+1}` the number that is one more.
# Of several names in the file for one here the first is written.
Names = Sequence[tuple[str, str]]
Arrays = dict[str, np.ndarray]
NUMBER = re.compile(r"\{(\w)(\+1)?\}")
OWN = {"names": "experiments"}  # the metadata of a file with the names and layouts of this project


def has_published_names(model: Mapping[str, Any]) -> bool:
    """Return whether torchvision's names are known for the weights of a model's config."""
    return _kind(model) in NAMES


def read_published(path: Path, model: Mapping[str, Any]) -> Arrays:
    """Return the arrays of a `.safetensors` file by the dotted names of the model's variables.

    Args:
        path: the file, with the names of torchvision's `state_dict`, or one that `mode=export` has
            written of a model that has none.
        model: the config of the model.

    Returns:
        The arrays in this project's layout. Those without a variable in the model stay under the
        name in the file.

    Raises:
        UserError: the file cannot be read, or PyTorch's names are not known for such a model.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise UserError(f"model.pretrained={path}: cannot be read ({error})") from error
    if metadata == OWN:
        return arrays
    if not has_published_names(model):
        raise UserError(
            f"model.pretrained={path}: PyTorch's names are known for {', '.join(NAMES)}, "
            f"not for {_kind(model)}"
        )
    names, flattened = NAMES[_kind(model)](model), _flattened(model)
    found = {}
    for name, array in arrays.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        here = _translated(module, names)
        if here is None:
            found[name] = array
        elif leaf != "weight":
            found[f"{here}.{LEAVES.get(leaf, leaf)}"] = array
        elif array.ndim == 1:
            found[f"{here}.scale"] = array
        else:
            found[f"{here}.kernel"] = _kernel(array, flattened.get(here))
    for together, _ in JOINED.get(_kind(model), ()):
        together(found, model)
    return found


def published(arrays: Mapping[str, np.ndarray], model: Mapping[str, Any]) -> Arrays:
    """Return a model's variables in the names and layouts of PyTorch, as `read_published` reads.

    Args:
        arrays: by the dotted names of the variables.
        model: the config of the model, one that `has_published_names`.

    Raises:
        UserError: a dense layer reads a map that is not square.
    """
    apart = dict(arrays)
    for _, split in JOINED.get(_kind(model), ()):
        split(apart, model)
    names = [(here, theirs) for theirs, here in NAMES[_kind(model)](model)]
    leaves = {here: theirs for theirs, here in LEAVES.items()}
    flattened, found = _flattened(model), {}
    for name, array in apart.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "kernel":
            array = _kernel_there(array, flattened.get(module))
        theirs = _translated(module, names) or module
        found[f"{theirs}.{leaves.get(leaf, 'weight')}"] = np.ascontiguousarray(array)
    return found


def _kind(model: Mapping[str, Any]) -> str:
    return model["_target_"].rpartition(".")[2]


def _flattened(model: Mapping[str, Any]) -> dict[str, int]:
    return FLATTENED.get(_kind(model), lambda _: {})(model)


def _translated(module: str, names: Names) -> str | None:
    """Return the second name of a module that has the first, None if there is none."""
    for given, wanted in names:
        pieces = NUMBER.split(given)  # text, a letter, +1 or None, text, ...
        patterns = [re.escape(pieces[0])]
        for letter, text in zip(pieces[1::3], pieces[3::3], strict=True):
            patterns += [rf"(?P<{letter}>\d+)", re.escape(text)]
        if match := re.fullmatch("".join(patterns), module):
            for letter, number in match.groupdict().items():
                least = int(number) - (f"{{{letter}+1}}" in given)
                wanted = wanted.replace(f"{{{letter}+1}}", str(least + 1))
                wanted = wanted.replace(f"{{{letter}}}", str(least))
            return wanted
    return None


def _kernel(array: np.ndarray, channels: int | None) -> np.ndarray:
    """Return a weight in this project's layout.

    `channels` are those of the square map that a dense layer reads, None for other layers.
    """
    if channels is not None:
        side = math.isqrt(array.shape[1] // channels)
        array = array.reshape(-1, channels, side, side).transpose(0, 2, 3, 1)
        array = array.reshape(len(array), -1)
    return np.moveaxis(array, (1, 0), (-2, -1))


def _kernel_there(array: np.ndarray, channels: int | None) -> np.ndarray:
    """Return a weight in PyTorch's layout; `channels` as for `_kernel`."""
    array = np.moveaxis(array, (-2, -1), (1, 0))
    if channels is None:
        return array
    side = math.isqrt(array.shape[1] // channels)
    if side * side * channels != array.shape[1]:
        raise UserError(
            "export.format=safetensors: PyTorch orders the inputs of a dense layer in another way, "
            "which is known for square images alone"
        )
    array = array.reshape(-1, side, side, channels).transpose(0, 3, 1, 2)
    return array.reshape(len(array), -1)


def _vgg(model: Mapping[str, Any]) -> Names:
    names, index = [], 0
    for stage, depth in enumerate(model["stages"]):
        for position in range(depth):
            for layer in range(1 + model["batch_norm"]):
                names.append((f"features.{index}", f"stages.{stage}.{position}.{layer}"))
                index += 1
            index += 1  # the rectifier
        index += 1  # the pooling
    return [*names, *_classifier(0, 3, 6)]


def _alexnet(model: Mapping[str, Any]) -> Names:
    convs = [(f"features.{i}", f"convs.{n}") for n, i in enumerate((0, 3, 6, 8, 10))]
    return [*convs, *_classifier(1, 4, 6)]


def _classifier(*indices: int) -> Names:
    names = ("hidden.0", "hidden.1", "output")
    return [(f"classifier.{i}", name) for i, name in zip(indices, names, strict=True)]


def _resnet(model: Mapping[str, Any]) -> Names:
    theirs, here = "layer{s+1}.{b}", "stages.{s}.{b}"
    return [
        ("conv1", "conv"),
        ("bn1", "norm"),
        ("fc", "output"),
        (f"{theirs}.conv{{n+1}}", f"{here}.convs.{{n}}"),
        (f"{theirs}.bn{{n+1}}", f"{here}.norms.{{n}}"),
        (f"{theirs}.downsample.0", f"{here}.projection"),
        (f"{theirs}.downsample.1", f"{here}.projection_norm"),
    ]


def _repeated(model: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the place of the blocks that a long stage repeats, and what each by itself is called.

    They are one `resnet.Repeated`.
    """
    return [
        (f"stages.{stage}.1.block.", [f"stages.{stage}.{n}." for n in range(1, depth)])
        for stage, depth in enumerate(model["stages"])
        if depth > MANY
    ]


def _stack_repeated(found: Arrays, model: Mapping[str, Any]) -> None:
    """Stack the arrays of the blocks that a long stage repeats."""
    for whole, parts in _repeated(model):
        for tail in [n.removeprefix(parts[0]) for n in found if n.startswith(parts[0])]:
            if all(f"{part}{tail}" in found for part in parts):
                found[f"{whole}{tail}"] = np.stack([found.pop(f"{part}{tail}") for part in parts])


def _unstack_repeated(found: Arrays, model: Mapping[str, Any]) -> None:
    for whole, parts in _repeated(model):
        for tail in [n.removeprefix(whole) for n in found if n.startswith(whole)]:
            arrays = found.pop(f"{whole}{tail}")
            found |= {f"{part}{tail}": one for part, one in zip(parts, arrays, strict=True)}


def _join_dense(found: Arrays, model: Mapping[str, Any]) -> None:
    """Join or stack the arrays of the layers of each block, for `densenet.DenseLayer`."""
    for block, depth in enumerate(model["blocks"]):
        first = f"blocks.{block}.0."
        for tail in [name.removeprefix(first) for name in found if name.startswith(first)]:
            layers = [f"blocks.{block}.{layer}.{tail}" for layer in range(depth)]
            if all(name in found for name in layers):
                arrays = [found.pop(name) for name in layers]
                joined = tail.split(".")[1] == "0"
                axis = max(arrays[0].ndim - 2, 0)
                together = np.concatenate(arrays, axis) if joined else np.stack(arrays)
                found[f"blocks.{block}.layer.{tail}"] = together


def _part_dense(found: Arrays, model: Mapping[str, Any]) -> None:
    for block, depth in enumerate(model["blocks"]):
        whole = f"blocks.{block}.layer."
        for tail in [name.removeprefix(whole) for name in found if name.startswith(whole)]:
            array = found.pop(f"{whole}{tail}")
            if tail.split(".")[1] == "0":  # each layer reads `growth_rate` more than that before
                axis, more = max(array.ndim - 2, 0), model["growth_rate"]
                first = array.shape[axis] // depth - more * (depth - 1) / 2
                ends = [round(n * first + more * n * (n - 1) / 2) for n in range(1, depth)]
                parts = np.split(array, ends, axis)
            else:
                parts = list(array)
            for layer, one in enumerate(parts):
                found[f"blocks.{block}.{layer}.{tail}"] = one


def _densenet(model: Mapping[str, Any]) -> Names:
    theirs, here = "features.denseblock{b+1}.denselayer{n+1}", "blocks.{b}.{n}"
    return [
        ("features.conv0", "conv"),
        ("features.norm0", "norm"),
        ("features.norm5", "last_norm"),
        ("classifier", "output"),
        *(
            (f"{theirs}.{part}{dot}{{i+1}}", f"{here}.{part}s.{{i}}")
            for dot in ("", ".")  # older files have norm.1 for norm1
            for part in ("norm", "conv")
        ),
        ("features.transition{t+1}.norm", "transitions.{t}.norm"),
        ("features.transition{t+1}.conv", "transitions.{t}.conv"),
    ]


def _googlenet(model: Mapping[str, Any]) -> Names:
    names = [("fc", "output")]
    units = {"conv1": "conv1", "conv2": "reduce2", "conv3": "conv2"}
    branches = ("branch1", "branch2.0", "branch2.1", "branch3.0", "branch3.1", "branch4.1")
    here = ("entry.0", "entry.1", "branch3", "entry.2", "branch5", "pooled")
    for number, stage in enumerate(model["modules"]):
        for position, _ in enumerate(stage):
            block = f"inception{number + 3}{'abcde'[position]}"
            for theirs, ours in zip(branches, here, strict=True):
                units[f"{block}.{theirs}"] = f"stages.{number}.{position}.{ours}"
    for number in range(2):
        aux, auxiliary = f"aux{number + 1}", f"auxiliaries.{number}"
        units[f"{aux}.conv"] = f"{auxiliary}.conv"
        names += [(f"{aux}.fc1", f"{auxiliary}.hidden"), (f"{aux}.fc2", f"{auxiliary}.output")]
    for theirs, ours in units.items():
        names += [(f"{theirs}.conv", f"{ours}.conv"), (f"{theirs}.bn", f"{ours}.norm")]
    return names


def _join_entries(found: Arrays, model: Mapping[str, Any]) -> None:
    """Join the 1x1 convolutions that read a module's input, for `googlenet.Inception`."""
    for name in [name for name in found if ".entry.0." in name]:
        parts = [name.replace(".entry.0.", f".entry.{number}.") for number in range(3)]
        if all(part in found for part in parts):
            together = np.concatenate([found.pop(part) for part in parts], axis=-1)
            found[name.replace(".entry.0.", ".entry.")] = together


def _part_entries(found: Arrays, model: Mapping[str, Any]) -> None:
    for name in [name for name in found if ".entry." in name]:
        _, number, position, *_ = name.split(".")
        one, reduce3, _, reduce5, *_ = model["modules"][int(number)][int(position)]
        assert found[name].shape[-1] == one + reduce3 + reduce5
        parts = np.split(found.pop(name), [one, one + reduce3], axis=-1)
        for i, part in enumerate(parts):
            found[name.replace(".entry.", f".entry.{i}.")] = part


NAMES: dict[str, Callable[[Mapping[str, Any]], Names]] = {
    "VGG": _vgg,
    "AlexNet": _alexnet,
    "ResNet": _resnet,
    "DenseNet": _densenet,
    "GoogLeNet": _googlenet,
}

# by model, what puts arrays together that are one here, and what takes them apart again
JOINED: dict[str, list[tuple[Callable[[Arrays, Mapping[str, Any]], None], ...]]] = {
    "ResNet": [(_stack_repeated, _unstack_repeated)],
    "DenseNet": [(_join_dense, _part_dense)],
    "GoogLeNet": [(_join_entries, _part_entries)],
}

# by model, the dense layers that read a flattened map, and the map's channels
FLATTENED: dict[str, Callable[[Mapping[str, Any]], dict[str, int]]] = {
    "VGG": lambda model: {"hidden.0": model["widths"][-1]},
    "AlexNet": lambda model: {"hidden.0": model["widths"][-1]},
    "GoogLeNet": lambda model: {
        f"auxiliaries.{number}.hidden": model["auxiliary_hidden"] // 8 for number in range(2)
    },
}
