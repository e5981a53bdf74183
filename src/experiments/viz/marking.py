"""A run's functions with each operation of their traces marked with its layer, and their names."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from experiments.core.experiment import Experiment, State
from experiments.models.densenet import DenseBlock
from experiments.models.layers import WeightedPool
from experiments.models.resnet import Repeated
from experiments.viz.flops import LAYER
from experiments.viz.layers import kind_of
from experiments.viz.receptive_field import Scopes

Loop = Repeated | DenseBlock
Parts = Sequence[tuple[str, int]]
RESIZING = "resizing"  # the operations before the first layer: of the pipeline
ITSELF = "(model)"  # those of the model in none of its layers
REST = "loss, optimizer"  # those in no layer after the first
AGAIN = "again"  # those of a second pass through the same layers, such as another sample's
APART = (RESIZING, REST)  # not of the network


class MarkedExperiment(Experiment):
    """An experiment that marks each operation of its traces with its layers.

    Attributes:
        has_modules: the names of all modules that can be called, and whether others are inside.
        outputs: what each module returned at its first call, by name.
        loops: the modules that compute several layers in a loop, by the name of the looped one.
        kinds: the kind of each module, by name.
        pooled: how many values a `WeightedPool` takes the mean of, by name.
        titles: what a paper calls a module, by name.
        parts: of a module that computes several layers side by side, their titles and features.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.has_modules: dict[str, bool] = {}
        self.outputs: dict[str, Any] = {}
        self.loops: dict[str, Loop] = {}
        self.kinds: dict[str, str] = {}
        self.pooled: dict[str, int] = {}
        self.titles: dict[str, str] = {}
        self.parts: dict[str, Parts] = {}
        self._called: set[str] | None = None  # the outermost modules, where passes are told apart
        self._inside = 0  # how many calls
        self._again = False

    @contextlib.contextmanager
    def in_one_pass(self) -> Iterator[None]:
        """Mark all that an outermost module does from its second call on as `AGAIN`."""
        self._called = set()
        yield
        self._called, self._again = None, False

    def training_loss(
        self, state: State, batch: Mapping[str, Any], key: jax.Array
    ) -> dict[str, jax.Array]:
        """Return the values of the objective in training, for a batch as stored."""
        inputs = self.prepare(batch, {}, key, train=True)
        model = self.trained_model({}, *self.weights(state), train=True)
        return self.means(model, state.step, inputs, {}, key)

    def model(self, *arguments: Any) -> nnx.Module:
        """Build the model, with each of its modules in a name scope of its own."""
        model = super().model(*arguments)
        for path, module in nnx.iter_modules(model):
            if callable(module):
                name = ".".join(map(str, path)) or ITSELF
                self.has_modules.setdefault(name, False)
                for end in range(1, len(path)):
                    self.has_modules[".".join(map(str, path[:end]))] = True
                if isinstance(module, Loop):
                    self.loops[f"{name}.{module.inside}"] = module
                if isinstance(module, WeightedPool):
                    self.pooled[name] = module.window_size
                if path:
                    self.has_modules[ITSELF] = True
                self.kinds[name] = kind_of(module)
                self.titles[name] = getattr(module, "title", "")
                if parts := getattr(module, "parts", None):
                    self.parts[name] = parts
                module.__class__ = self._marked(type(module), name)
        return model

    def _marked(self, kind: type, name: str) -> type:
        def call(module: Any, *arguments: Any, **named: Any) -> Any:
            if not self._inside and self._called is not None:
                self._again = name in self._called
                self._called.add(name)
            self._inside += 1
            with jax.named_scope(LAYER + (AGAIN if self._again else name)):
                output = kind.__call__(module, *arguments, **named)
            self._inside -= 1
            self.outputs.setdefault(name, jax.tree.leaves(output)[0])
            return output

        return type(kind.__name__, (kind,), {"__call__": call})


def module_of(scopes: Scopes, has_modules: Mapping[str, bool]) -> str:
    """Return the name of the innermost module of some scopes."""
    if AGAIN in scopes:
        return AGAIN
    return next((name for name in reversed(scopes) if name in has_modules), REST)


class Names:
    """Gives operations in the order of a program the names of their layers.

    A function beside modules is a layer, numbered from its second call on; one in a module without
    others is a part of that.
    """

    def __init__(self, has_modules: Mapping[str, bool]):
        self.has_modules = has_modules
        self.taken: set[str] = set()
        self.previous: Scopes = ()
        self.function = REST
        self.started = False

    def module(self, scopes: Scopes) -> str:
        """Return the name of the innermost module of the next operation."""
        self.started |= bool(scopes)
        return module_of(scopes, self.has_modules) if self.started else RESIZING

    def of(self, scopes: Scopes) -> tuple[str, bool]:
        """Return the name of the layer of the next operation, and whether it is a function."""
        module = self.module(scopes)
        is_function = bool(scopes) and scopes[-1] not in self.has_modules
        is_function &= self.has_modules.get(module, module != AGAIN)
        if is_function and scopes != self.previous:
            name = scopes[-1] if module in (REST, ITSELF) else f"{module}.{scopes[-1]}"
            numbered = (f"{name}_{number}" for number in itertools.count(2))
            every = itertools.chain([name], numbered)
            self.function = next(n for n in every if n not in self.taken)
            self.taken.add(self.function)
        self.previous = scopes
        return (self.function, True) if is_function else (module, False)
