"""What each operation of a traced program has seen of its input, and through how many layers.

The program is followed with, for each array, the window of the input that one of its values depends
on, and the number of weighted layers on the longest way there. Nothing is computed.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from jax.extend.core import Literal

from experiments.viz.flops import LAYER, PRODUCTS, programs

Scopes = tuple[str, ...]
Turn = tuple[str, int] | None  # of a loop over layers: the loop's name and a number

ELEMENTWISE = frozenset(
    {
        *("abs", "add", "add_any", "and", "ceil", "clamp", "convert_element_type", "copy", "cos"),
        *("div", "eq", "erf", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow"),
        *("is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "name", "ne"),
        *("neg", "not", "or", "pow", "round", "rsqrt", "select_n", "sign", "sin", "sqrt", "square"),
        *("stop_gradient", "sub", "tanh"),
    }
)


@dataclass(frozen=True)
class Axis:
    """Of a spatial axis: the value at i has seen from `step` · i + `low` to `step` · i + `high`."""

    step: Fraction = Fraction(1)
    low: Fraction = Fraction(0)
    high: Fraction = Fraction(0)

    @property
    def size(self) -> int:
        """The number of places that one value has seen."""
        return math.floor(self.high - self.low) + 1

    def window(self, size: int, stride: int, padding: int) -> "Axis":
        """Return the axis of what has seen windows of this one: `size` places from −`padding`."""
        low = self.low - self.step * padding
        high = self.high + self.step * (size - 1 - padding)
        return Axis(self.step * stride, low, high)

    def apart(self, distance: int) -> "Axis":
        """Return the axis with its values so far apart, zeros between."""
        return replace(self, step=self.step / distance)


@dataclass(frozen=True)
class Seen:
    """What an array depends on: arrays that do not depend on the input have None instead.

    Attributes:
        layers: the weighted layers on the longest way from the input, each once.
        field: of each spatial axis of [batch, *spatial, channels]; None where there is no such
            window, or it is not known.
    """

    layers: frozenset[tuple[str, Turn]] = frozenset()
    field: tuple[Axis, ...] | None = None

    @property
    def depth(self) -> int:
        """The number of weighted layers on the longest way from the input."""
        return len(self.layers)


Known = Seen | None


class Follower:
    """Follows a program, and records (scopes, turn, what its first output has seen) of each step.

    Args:
        module_of: the layer that an operation belongs to, by its scopes.
        loops: modules that are loops over layers, each with the name of what is inside.
    """

    def __init__(self, module_of: Callable[[Scopes], str], loops: Mapping[str, str]):
        self.module_of, self.loops = module_of, loops
        self.steps: list[tuple[Scopes, Turn, Seen]] = []
        self.turns: Counter[str] = Counter()
        self.started = False  # with the first layer: what comes before prepares the input

    def run(
        self, program: Any, inputs: Sequence[Known], scopes: Scopes = (), turn: Turn = None
    ) -> list[Known]:
        """Follow a jaxpr; return what its outputs have seen."""
        known: dict[Any, Known] = dict(zip(program.invars, inputs, strict=True))

        def of(variable: Any) -> Known:
            return None if isinstance(variable, Literal) else known.get(variable)

        for equation in program.eqns:
            given = [of(variable) for variable in equation.invars]
            if not any(given):
                continue
            names = [entry.name for entry in equation.source_info.name_stack.stack]
            own = tuple(n.removeprefix(LAYER) for n in names if n.startswith(LAYER)) or scopes
            if own and not self.started:
                self.started = True
                for variable in [v for v in equation.invars if of(v)]:
                    known[variable] = Seen(field=(Axis(),) * (variable.aval.ndim - 2) or None)
                given = [of(variable) for variable in equation.invars]
            outputs = self._equation(equation, given, own, turn)
            known.update(zip(equation.outvars, outputs, strict=True))
        return [of(variable) for variable in program.outvars]

    def _equation(
        self, equation: Any, given: list[Known], scopes: Scopes, turn: Turn
    ) -> list[Known]:
        inside = list(programs(equation))
        if equation.primitive.name == "scan":
            return self._scan(equation, inside[0], given, scopes, turn)
        if len(inside) == 1 and len(inside[0].invars) == len(given):
            return self.run(inside[0], given, scopes, turn)
        seen = replace(_joined(given), field=_field(equation, given))
        if equation.primitive.name in PRODUCTS and scopes and sum(map(bool, given)) == 1:
            # a layer with several products is one, and so is one that reads its own output again
            seen = replace(seen, layers=seen.layers | {(self.module_of(scopes), turn)})
        self.steps.append((scopes, turn, seen))
        return [seen] * len(equation.outvars)

    def _scan(
        self, equation: Any, body: Any, given: list[Known], scopes: Scopes, turn: Turn
    ) -> list[Known]:
        """Follow a loop: over layers turn by turn, over time twice, then with a state."""
        first, carried = equation.params["num_consts"], equation.params["num_carry"]
        rest = [seen and replace(seen, field=None) for seen in given[first + carried :]]
        constants, carry = given[:first], given[first : first + carried]
        loop = self.loops.get(scopes[-1] if scopes else "")
        for _ in range(equation.params["length"] if loop else 2):
            if loop:
                turn = (loop, self.turns[loop])
                self.turns[loop] += 1
            outputs = self.run(body, [*constants, *carry, *rest], scopes, turn)
            carry = outputs[:carried]
        return [*carry, *(seen and replace(seen, field=None) for seen in outputs[carried:])]


def _joined(given: Sequence[Known]) -> Seen:
    """Return what has seen all that these have."""
    known = [seen for seen in given if seen is not None]
    deepest = max(known, key=lambda seen: seen.depth)
    fields = [seen.field for seen in known if seen.field is not None]
    if len(fields) < len(known) or len({tuple(a.step for a in field) for field in fields}) > 1:
        return replace(deepest, field=None)
    joined = (
        Axis(axes[0].step, min(a.low for a in axes), max(a.high for a in axes))
        for axes in zip(*fields, strict=True)
    )
    return replace(deepest, field=tuple(joined))


def _field(equation: Any, given: Sequence[Known]) -> tuple[Axis, ...] | None:
    """Return the window of the input that a value of the first output has seen, if it is known."""
    name, parameters = equation.primitive.name, equation.params
    field, shape = _joined(given).field, equation.outvars[0].aval.shape
    if field is None or len(shape) != len(field) + 2:
        return None
    spatial = range(1, len(shape) - 1)
    if name == "conv_general_dilated":
        numbers = parameters["dimension_numbers"]
        if given[0] is None or numbers.lhs_spec != (0, len(shape) - 1, *spatial):
            return None
        kernel = [equation.invars[1].aval.shape[axis] for axis in numbers.rhs_spec[2:]]
        apart, dilation = parameters["lhs_dilation"], parameters["rhs_dilation"]
        steps, padding = parameters["window_strides"], parameters["padding"]
        each = zip(field, apart, kernel, dilation, steps, padding, strict=True)
        return tuple(
            axis.apart(distance).window((size - 1) * far + 1, stride, low)
            for axis, distance, size, far, stride, (low, _) in each
        )
    if name == "slice":
        strides = parameters["strides"] or (1,) * len(shape)
        return tuple(
            axis.window(1, strides[i], -parameters["start_indices"][i])
            for axis, i in zip(field, spatial, strict=True)
        )
    if name == "pad":
        pads = [parameters["padding_config"][i] for i in spatial]
        return tuple(
            axis.apart(between + 1).window(1, 1, low)
            for axis, (low, _, between) in zip(field, pads, strict=True)
        )
    sides = {v.aval.shape[1:-1] for v, s in zip(equation.invars, given, strict=True) if s}
    last = len(shape) - 1
    keeps = {  # operations that can leave the places of values as they are
        "concatenate": lambda: parameters["dimension"] == last,
        "split": lambda: parameters["axis"] == last,
        "gather": lambda: parameters["slice_sizes"][1:-1] == shape[1:-1],
        "dynamic_update_slice": lambda: True,  # of the whole sides
    }
    if sides != {shape[1:-1]}:
        return None
    return field if name in ELEMENTWISE or keeps.get(name, lambda: False)() else None


def steps_of(
    program: Any,
    inputs: Sequence[bool],
    module_of: Callable[[Scopes], str],
    loops: Mapping[str, str],
) -> Iterator[tuple[Scopes, Turn, Seen]]:
    """Yield what each operation of a jaxpr has seen of the `inputs` that are marked, in order."""
    follower = Follower(module_of, loops)
    follower.run(program, [Seen() if marked else None for marked in inputs])
    yield from follower.steps
