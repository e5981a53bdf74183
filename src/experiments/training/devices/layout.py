"""Where the arrays of a training go: a mesh of devices with the axes `trial` and `data`."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.core.experiment import Tree
from experiments.core.params import divided

Shapes = Mapping[str, jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class Layout:
    """The place of a stack: its devices, its rows, and whether each trial has its own batches.

    Args:
      divided: each device holds a part of every trial's state, of the axis `data` of the mesh.
    """

    mesh: Mesh
    rows: int
    own_batches: bool = False
    divided: bool = False

    @property
    def trials(self) -> NamedSharding:
        """Each device has its trials."""
        return NamedSharding(self.mesh, PartitionSpec("trial"))

    @property
    def batch(self) -> NamedSharding:
        """Each device has its part of a batch."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    @property
    def everywhere(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def order(self) -> NamedSharding:
        """The order of the examples, int32 [rows, examples] or of all trials [examples]."""
        return self.trials if self.own_batches else self.everywhere

    def batches(self, size: int) -> NamedSharding:
        """Return the place of batches that come from the host: divided if the devices divide it."""
        return self.everywhere if size % self.mesh.shape["data"] else self.batch

    def state(self, tree: Tree) -> Tree:
        """Return the place of each array of a stack's states or weights, [rows, ...] each."""

        def placed(leaf: jax.Array | np.ndarray | jax.ShapeDtypeStruct) -> NamedSharding:
            devices = self.mesh.shape["data"] if self.divided else 1
            return NamedSharding(
                self.mesh, PartitionSpec("trial", *divided(leaf.shape[1:], devices))
            )

        return jax.tree.map(placed, tree)

    def stacked(self, tree: Tree) -> Tree:
        """Return shapes of one trial with the axis of trials in front, on their devices."""
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((self.rows, *np.shape(leaf)), leaf.dtype), tree
        )
        return jax.tree.map(_with_sharding, shapes, self.state(shapes))

    def halved(self, trials: int) -> "Layout":
        """Return the place on the same devices of so many trials that are left.

        Rows are halved, and again, while they suffice, so that few sizes are ever compiled.
        """
        devices = self.mesh.shape["trial"]
        each = self.rows // devices
        while each > 1 and -(-each // 2) * devices >= trials:
            each = -(-each // 2)
        return dataclasses.replace(self, rows=each * devices)

    @contextlib.contextmanager
    def traced(self) -> Iterator[None]:
        """Let what is traced within know of the mesh, if it divides the states."""
        with jax.set_mesh(self.mesh) if self.divided else contextlib.nullcontext():
            yield


def placed(shapes: Shapes, sharding: NamedSharding) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shapes of arrays that all have one place."""
    return {name: _with_sharding(leaf, sharding) for name, leaf in shapes.items()}


def _with_sharding(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
