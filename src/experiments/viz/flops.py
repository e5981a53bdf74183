"""Floating-point operations of a traced program, each with the layer that it belongs to.

What counts are matrix products and convolutions, two operations (multiply, add) a pair of factors;
zeros of padding and dilation that a formula need not touch are left out. The rest of a network
(biases, activations, normalisation, pooling) is not counted.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

PRODUCTS = ("dot_general", "conv_general_dilated", "multiply_windows", "sum_windows")
LSTM = ("lstm_forward", "lstm_backward")
STORED = (  # whose results go through memory; what is between them is fused
    *PRODUCTS,
    *LSTM,
    *("concatenate", "stack"),
    *("scan", "while", "dynamic_update_slice", "gather", "scatter-add"),
)
LAYER = "@"  # begins the name scopes that stand for layers


@dataclass(frozen=True)
class Operation:
    """One equation of a program: the layers that it is in, outermost first, and what it costs."""

    layers: tuple[str, ...]
    flops: int
    output: Any  # shape and dtype


class Cost(NamedTuple):
    """What a program takes."""

    flops: int
    memory: int  # bytes, roughly: all that it stores, of which it holds a part at a time


def operations(jaxpr: Any, times: int = 1, layers: tuple[str, ...] = ()) -> Iterator[Operation]:
    """All equations of a jaxpr in order, those of a loop as often as it runs.

    A `while` whose number of turns is not known counts once, a `cond` as all of its branches.
    """
    for equation in jaxpr.eqns:
        stack = [entry.name for entry in equation.source_info.name_stack.stack]
        inside = tuple(n.removeprefix(LAYER) for n in stack if n.startswith(LAYER)) or layers
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = list(_programs(equation))
        for program in inner:
            yield from operations(program, times * turns, inside)
        if not inner:
            yield Operation(inside, times * flops(equation), equation.outvars[0].aval)


def cost(jaxpr: Any) -> Cost:
    """What a jaxpr takes, all of its equations together."""
    return Cost(work(jaxpr), _bytes_stored(jaxpr))


def work(jaxpr: Any) -> int:
    """The operations of all equations of a jaxpr."""
    return sum(operation.flops for operation in operations(jaxpr))


def _bytes_stored(jaxpr: Any) -> int:
    """The bytes of results that go through memory; of a loop's body those of one turn."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in STORED:
            total += sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in equation.outvars)
        total += sum(_bytes_stored(program) for program in _programs(equation))
    return total


def flops(equation: Any) -> int:
    """The operations of one equation of a jaxpr: 0 unless it is a product or a convolution."""
    name = equation.primitive.name
    if name in LSTM:  # outputs [lanes, T, B, H], or gradients [lanes, T, B, 4 H]
        steps = math.prod(equation.outvars[0].aval.shape[:3])
        kernels = equation.invars[1:3] if name == "lstm_forward" else equation.invars[3:4]
        return 2 * steps * sum(math.prod(kernel.aval.shape[1:]) for kernel in kernels)
    if name not in PRODUCTS:
        return 0
    left, right = (variable.aval.shape for variable in equation.invars)
    out = equation.outvars[0].aval.shape
    if name in ("multiply_windows", "sum_windows"):  # of lanes; places [lanes, N, H, W, C]
        first, second, kernel = (
            (left, out, right) if name == "multiply_windows" else (left, right, out)
        )
        places = min(math.prod(first[1:4]), math.prod(second[1:4]))
        return 2 * max(first[0], second[0]) * places * math.prod(kernel[1:])
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    numbers = equation.params["dimension_numbers"]
    to, per, *window = (right[axis] for axis in numbers.rhs_spec)
    groups = equation.params["feature_group_count"]
    # each output is a sum over the window, each input goes to every place of it: what one side
    # counts too much are zeros that stride or padding have put into the other
    gathered = math.prod(out) * per * math.prod(window)
    scattered = math.prod(left) * to // groups * math.prod(window)
    return 2 * min(gathered, scattered)


def _programs(equation: Any) -> Iterator[Any]:
    """The programs inside of an equation: of a loop, a branch, a jitted function."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)  # of a closed one
            if hasattr(item, "eqns"):
                yield item
