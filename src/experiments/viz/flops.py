"""Floating-point operations and memory of a traced program, operation by operation.

Matrix products and convolutions count, with two operations (multiply, add) per pair of factors.
Zeros of padding and dilation that a formula need not touch do not. Biases, activations,
normalisation and pooling are not counted.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

WINDOWS = ("multiply_windows", "sum_windows")
LSTM = ("lstm_forward", "lstm_backward")
PRODUCTS = ("dot_general", "conv_general_dilated", *WINDOWS)
STORED = (  # operations with results that go through memory; what is between them is fused
    *PRODUCTS,
    *LSTM,
    *("concatenate", "stack"),
    *("scan", "while", "dynamic_update_slice", "gather", "scatter-add"),
)
LAYER = "@"  # begins the name scopes that stand for layers


@dataclass(frozen=True)
class Operation:
    """One equation of a program: its layers from the outermost, its FLOPs, its output's shape."""

    layers: tuple[str, ...]
    flops: int
    output: Any  # with a shape and a dtype


class Cost(NamedTuple):
    """The FLOPs of a program, and about the bytes that it stores, not all at one time."""

    flops: int
    memory: int


def operations(jaxpr: Any, times: int = 1, layers: tuple[str, ...] = ()) -> Iterator[Operation]:
    """Yield the equations of a jaxpr in order, with the FLOPs of all turns of a loop.

    A `while`, for which the number of turns is not known, counts once, a `cond` as all branches.
    """
    for equation in jaxpr.eqns:
        scopes = [entry.name for entry in equation.source_info.name_stack.stack]
        inside = tuple(s.removeprefix(LAYER) for s in scopes if s.startswith(LAYER)) or layers
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        parts = list(programs(equation))
        for program in parts:
            yield from operations(program, times * turns, inside)
        if not parts:
            yield Operation(inside, times * flops(equation), equation.outvars[0].aval)


def work(jaxpr: Any) -> int:
    """Return the FLOPs of a jaxpr."""
    return sum(operation.flops for operation in operations(jaxpr))


def cost(jaxpr: Any) -> Cost:
    """Return the FLOPs and the memory of a jaxpr."""
    return Cost(work(jaxpr), _bytes_stored(jaxpr))


def size_in_bytes(array: Any) -> int:
    """Return the bytes of something with a shape and a dtype."""
    return math.prod(array.shape) * array.dtype.itemsize


def size_of(tree: Any) -> int:
    """Return the bytes of all arrays, or shapes, of a tree."""
    return sum(map(size_in_bytes, jax.tree.leaves(tree)))


def flops(equation: Any) -> int:
    """Return the FLOPs of one equation: 0 unless it is a product, a convolution or an LSTM."""
    name = equation.primitive.name
    if name in LSTM:  # outputs [trials, T, B, H], or gradients [trials, T, B, 4 H]
        steps = math.prod(equation.outvars[0].aval.shape[:3])
        kernels = equation.invars[1:3] if name == "lstm_forward" else equation.invars[3:4]
        return 2 * steps * sum(math.prod(kernel.aval.shape[1:]) for kernel in kernels)
    if name not in PRODUCTS:
        return 0
    left, right = (variable.aval.shape for variable in equation.invars)
    out = equation.outvars[0].aval.shape
    if name in WINDOWS:  # inputs and outputs [trials, N, H, W, C], kernels [trials, h, w, C, D]
        second, kernel = (out, right) if name == "multiply_windows" else (right, out)
        places = min(math.prod(left[1:4]), math.prod(second[1:4]))
        return 2 * max(left[0], second[0]) * places * math.prod(kernel[1:])
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    numbers = equation.params["dimension_numbers"]
    outputs, inputs, *window = (right[axis] for axis in numbers.rhs_spec)
    groups = equation.params["feature_group_count"]
    # each output is a sum over the window, and each input goes to every place of a window: the
    # larger count has the zeros that strides or padding have put into the other side
    gathered = math.prod(out) * inputs * math.prod(window)
    scattered = math.prod(left) * outputs // groups * math.prod(window)
    return 2 * min(gathered, scattered)


def _bytes_stored(jaxpr: Any) -> int:
    """Return the bytes of the results that go through memory; a loop counts one turn."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in STORED:
            total += sum(size_in_bytes(variable.aval) for variable in equation.outvars)
        total += sum(map(_bytes_stored, programs(equation)))
    return total


def programs(equation: Any) -> Iterator[Any]:
    """Yield the programs inside an equation: of a loop, a branch, a jitted function."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)  # inside a closed program
            if hasattr(item, "eqns"):
                yield item
