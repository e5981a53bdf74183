"""Published PyTorch weights, in the names and layouts of this project's models.

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

# regular expression for a module's name in the file, and its name here or a function that makes it
# from the numbers in the expression's groups
Rules = Mapping[str, str | Callable[..., str]]


def read_published(path: Path, model: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the arrays of a `.safetensors` file by the dotted names of the model's variables.

    Args:
        path: the file, with the names of torchvision's `state_dict`.
        model: the config of the model.

    Returns:
        The arrays in this project's layout. Those without a variable in the model stay under the
        name in the file.

    Raises:
        UserError: the file cannot be read, or PyTorch's names are not known for such a model.
    """
    from safetensors.numpy import load_file

    kind = model["_target_"].rpartition(".")[2]
    if kind not in RULES:
        raise UserError(
            f"model.pretrained={path}: PyTorch's names are known for {', '.join(RULES)}, "
            f"not for {kind}"
        )
    try:
        arrays = load_file(path)
    except Exception as error:
        raise UserError(f"model.pretrained={path}: cannot be read ({error})") from error
    rules = RULES[kind](model)
    flattened = FLATTENED.get(kind, lambda _: {})(model)
    found = {}
    for name, array in arrays.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        here = _translated(module, rules)
        if here is None:
            found[name] = array
        elif leaf != "weight":
            found[f"{here}.{LEAVES.get(leaf, leaf)}"] = array
        elif array.ndim == 1:
            found[f"{here}.scale"] = array
        else:
            found[f"{here}.kernel"] = _kernel(array, flattened.get(here))
    if kind == "ResNet":
        _stack_repeated(found, model["stages"])
    if kind == "DenseNet":
        _join_dense(found, model["blocks"])
    if kind == "GoogLeNet":
        _join_entries(found)
    return found


def _translated(module: str, rules: Rules) -> str | None:
    """Return the name here of a module in the file, None if no rule matches."""
    for pattern, name in rules.items():
        if match := re.fullmatch(pattern, module):
            return name if isinstance(name, str) else name(*map(int, match.groups()))
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


def _vgg(model: Mapping[str, Any]) -> Rules:
    rules, index = {}, 0
    for stage, depth in enumerate(model["stages"]):
        for position in range(depth):
            for layer in range(1 + model["batch_norm"]):
                rules[rf"features\.{index}"] = f"stages.{stage}.{position}.{layer}"
                index += 1
            index += 1  # the rectifier
        index += 1  # the pooling
    return rules | _classifier(0, 3, 6)


def _alexnet(model: Mapping[str, Any]) -> Rules:
    convs = {rf"features\.{i}": f"convs.{n}" for n, i in enumerate((0, 3, 6, 8, 10))}
    return convs | _classifier(1, 4, 6)


def _classifier(*indices: int) -> dict[str, str]:
    names = ("hidden.0", "hidden.1", "output")
    return {rf"classifier\.{i}": name for i, name in zip(indices, names, strict=True)}


def _resnet(model: Mapping[str, Any]) -> Rules:
    block = r"layer(\d+)\.(\d+)\."
    return {
        "conv1": "conv",
        "bn1": "norm",
        "fc": "output",
        rf"{block}conv(\d)": lambda s, b, n: f"stages.{s - 1}.{b}.convs.{n - 1}",
        rf"{block}bn(\d)": lambda s, b, n: f"stages.{s - 1}.{b}.norms.{n - 1}",
        rf"{block}downsample\.0": lambda s, b: f"stages.{s - 1}.{b}.projection",
        rf"{block}downsample\.1": lambda s, b: f"stages.{s - 1}.{b}.projection_norm",
    }


def _stack_repeated(found: dict[str, np.ndarray], stages: Sequence[int]) -> None:
    """Stack the arrays of the blocks that a long stage repeats, for `resnet.Repeated`."""
    for stage, depth in enumerate(stages):
        first = f"stages.{stage}.1."
        if depth > MANY:
            for tail in [name.removeprefix(first) for name in found if name.startswith(first)]:
                blocks = [f"stages.{stage}.{position}.{tail}" for position in range(1, depth)]
                if all(name in found for name in blocks):
                    found[f"{first}block.{tail}"] = np.stack([found.pop(n) for n in blocks])


def _join_dense(found: dict[str, np.ndarray], blocks: Sequence[int]) -> None:
    """Join or stack the arrays of the layers of each block, for `densenet.DenseLayer`."""
    for block, depth in enumerate(blocks):
        first = f"blocks.{block}.0."
        for tail in [name.removeprefix(first) for name in found if name.startswith(first)]:
            layers = [f"blocks.{block}.{layer}.{tail}" for layer in range(depth)]
            if all(name in found for name in layers):
                arrays = [found.pop(name) for name in layers]
                joined = tail.split(".")[1] == "0"
                axis = max(arrays[0].ndim - 2, 0)
                together = np.concatenate(arrays, axis) if joined else np.stack(arrays)
                found[f"blocks.{block}.layer.{tail}"] = together


def _densenet(model: Mapping[str, Any]) -> Rules:
    layer = r"features\.denseblock(\d+)\.denselayer(\d+)\."  # older files have norm.1 for norm1
    return {
        r"features\.conv0": "conv",
        r"features\.norm0": "norm",
        r"features\.norm5": "last_norm",
        "classifier": "output",
        rf"{layer}norm\.?(\d)": lambda b, n, i: f"blocks.{b - 1}.{n - 1}.norms.{i - 1}",
        rf"{layer}conv\.?(\d)": lambda b, n, i: f"blocks.{b - 1}.{n - 1}.convs.{i - 1}",
        r"features\.transition(\d)\.norm": lambda t: f"transitions.{t - 1}.norm",
        r"features\.transition(\d)\.conv": lambda t: f"transitions.{t - 1}.conv",
    }


def _googlenet(model: Mapping[str, Any]) -> Rules:
    rules: dict[str, str] = {"fc": "output"}
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
        rules |= {rf"{aux}\.fc1": f"{auxiliary}.hidden", rf"{aux}\.fc2": f"{auxiliary}.output"}
    for theirs, ours in units.items():
        pattern = re.escape(theirs)
        rules |= {rf"{pattern}\.conv": f"{ours}.conv", rf"{pattern}\.bn": f"{ours}.norm"}
    return rules


def _join_entries(found: dict[str, np.ndarray]) -> None:
    """Join the 1x1 convolutions that read a module's input, for `googlenet.Inception`."""
    for name in [name for name in found if ".entry.0." in name]:
        parts = [name.replace(".entry.0.", f".entry.{number}.") for number in range(3)]
        if all(part in found for part in parts):
            together = np.concatenate([found.pop(part) for part in parts], axis=-1)
            found[name.replace(".entry.0.", ".entry.")] = together


RULES: dict[str, Callable[[Mapping[str, Any]], Rules]] = {
    "VGG": _vgg,
    "AlexNet": _alexnet,
    "ResNet": _resnet,
    "DenseNet": _densenet,
    "GoogLeNet": _googlenet,
}

# by model, the dense layers that read a flattened map, and the map's channels
FLATTENED: dict[str, Callable[[Mapping[str, Any]], dict[str, int]]] = {
    "VGG": lambda model: {"hidden.0": model["widths"][-1]},
    "AlexNet": lambda model: {"hidden.0": model["widths"][-1]},
    "GoogLeNet": lambda model: {
        f"auxiliaries.{number}.hidden": model["auxiliary_hidden"] // 8 for number in range(2)
    },
}
