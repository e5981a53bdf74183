"""What lanes of one static configuration share: the devices, the data, the compiled programs."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.core.experiment import Tree
from experiments.data.dataset import Stream
from experiments.training import stored
from experiments.training.evaluation import Evaluator
from experiments.training.population_programs import PopulationPrograms
from experiments.training.population_saving import Stack
from experiments.training.population_width import Sized, choose_width, devices_for
from experiments.training.session import Session
from experiments.viz.flops import Cost


class Shared:
    """What is made from the session of any of the lanes, for all of them.

    Args:
      own_batches: whether each lane has its own order of the data.
      lanes: how many there are.
    """

    def __init__(self, session: Session, own_batches: bool, lanes: int):
        self.session, self.own_batches = session, own_batches
        self.cost: Cost = session.kept.get(("cost", session.untried))
        self.mesh = Mesh(np.asarray(devices_for(lanes, self.cost)), ("lanes",))
        self.programs = PopulationPrograms(
            session.experiment,
            self.mesh,
            batch_size=session.batch_size,
            max_steps=session.trainer.max_steps_per_dispatch,
            own_batches=own_batches,
        )
        self.shapes = session.experiment.abstract_state(session.hparams)
        # one device holds the data as for a run by itself, and once for both
        as_one_run = self.mesh.size == session.mesh.size == 1
        self.feed = session.feed if as_one_run else session.feed_on(self.programs.replicated)

    def rows(self, lanes: int) -> int:
        """Rows of a stack of so many lanes: as many on each device."""
        return -(-lanes // self.mesh.size) * self.mesh.size

    def fewer_rows(self, rows: int, lanes: int) -> int:
        """Rows of a stack for lanes that are left of so many rows: half, and again, while it does.

        So few sizes are ever compiled.
        """
        each = rows // self.mesh.size
        while each > 1 and -(-each // 2) * self.mesh.size >= lanes:
            each = -(-each // 2)
        return each * self.mesh.size

    def fewer_devices(self, lanes: int) -> "Shared":
        """For lanes that are left: half of the devices or less where more have nothing to do.

        On a CPU those would be in the way of the others. A stream stays with its readers.
        """
        if lanes > self.mesh.size // 2 or isinstance(self.session.splits.train, Stream):
            return self
        return Shared(self.session, self.own_batches, lanes)

    def spread(self, tree: Tree) -> Tree:
        """Rows put on their devices."""
        return jax.device_put(tree, self.programs.stacked)

    def picked(self, stack: Tree, rows: np.ndarray) -> Tree:
        """These rows of a stack, which may lie on other devices.

        Of a CPU by way of the host: cores that look into each other's rows can wait for ever.
        """
        if jax.default_backend() == "cpu":
            stack = jax.device_get(stack)
        return self.spread(jax.tree.map(lambda leaf: leaf[rows], stack))

    def evaluator(self, split: str) -> Evaluator:
        """The evaluation of the split `validation` or `test`."""
        session = self.session
        return session.kept.once(
            self._key(("evaluator of lanes", split)),
            lambda: Evaluator(
                getattr(session.splits, split),
                session.eval_batch_size,
                self.programs.replicated,
                session.trainer.eval_batches,
                session.config["seed"],
            ),
        )

    def compiled(
        self, rows: int, width: int | None, time_one: Callable[[Any, int], float]
    ) -> Sized:
        """The programs for a stack of so many rows; those of another population where kept.

        Args:
          width: lanes computed side by side; None finds the fastest.
          time_one: see `choose_width`.
        """
        return self._kept(("population", rows, width), lambda: self._compile(rows, width, time_one))

    def initial(self, hparams: Tree, keys: jax.Array) -> Stack:
        """The states at step 0, and their weights as the best so far."""
        rows = keys.shape[0]
        init = self._kept(("initial", rows), lambda: self._compile_init(rows))
        return init(hparams, keys)

    def select(self, rows: int) -> jax.stages.Compiled:
        """`select(better, new, old)`; see `PopulationPrograms.compile_select`."""
        return self._kept(("select", rows), lambda: self._compile_select(rows))

    def compile_ahead(self, pool: Executor, rows: int, width: int | None) -> None:
        """Has `pool` compile what a new population needs, as far as nothing need be timed."""
        for key, compile, *arguments in (
            (("population", rows, width), self._compile, rows, width, None),
            (("initial", rows), self._compile_init, rows),
            (("select", rows), self._compile_select, rows),
        ):
            key = self._key(key)
            if self.session.kept.get(key) is None:
                self.session.kept.put(key, pool.submit(compile, *arguments))

    def _kept(self, key: tuple, make: Callable[[], Any]) -> Any:
        """What was made under this key before, or is being made; else what `make` gives."""
        kept, key = self.session.kept, self._key(key)
        made = kept.get(key)
        if isinstance(made, Future):
            made = made.result()
        if made is None:
            made = make()
        kept.put(key, made)
        return made

    def _key(self, key: tuple) -> tuple:
        return (*key, self.session.static, self.own_batches, self.mesh.size)

    def _compile(
        self, rows: int, width: int | None, time_one: Callable[[Any, int], float] | None
    ) -> Sized | None:
        hparams, keys = self._inputs(rows)
        return choose_width(
            self.programs,
            stored.stacked(self.shapes, rows),
            (self.feed.arrays, hparams, keys),
            self.evaluator("validation").shapes(),
            self.cost.flops,
            width,
            time_one,
            lambda key, make: self.session.kept.once(self._key((*key, rows)), make),
        )

    def _compile_init(self, rows: int) -> jax.stages.Compiled:
        return self.programs.compile_init(*self._inputs(rows))

    def _compile_select(self, rows: int) -> jax.stages.Compiled:
        states = stored.stacked(self.shapes, rows)
        return self.programs.compile_select(self.session.experiment.weights(states))

    def _inputs(self, rows: int) -> tuple[dict[str, Any], Any]:
        """Shapes of the hyperparameters and keys of so many rows."""
        number = jax.ShapeDtypeStruct((rows,), np.float32)
        keys = jax.ShapeDtypeStruct((rows,), self.session.key.dtype)
        return dict.fromkeys(self.session.hparams, number), keys
