"""`data.batch_size=auto`: the largest power of two whose steps the devices have memory for."""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from experiments.core.config import build
from experiments.errors import LESS_MEMORY, UserError, out_of_memory, quantity
from experiments.machine import StopRequest
from experiments.tracking.tracker import Trackers
from experiments.training import runtime
from experiments.training.devices.memory import beside_arguments, bytes_per_device, taken
from experiments.training.evaluation import Data
from experiments.training.setup import Setup
from experiments.training.stack import Stack
from experiments.training.trial import Trial

log = logging.getLogger(__name__)

AUTO = "auto"
FIRST = 32  # examples of the first batch that is tried
ROOM = 0.8  # of the memory that is free, the most that a training may take


def is_auto(config: Mapping[str, Any]) -> bool:
    """Return whether the batch size of a config is to be found."""
    return config["data"].get("batch_size") == AUTO


def with_batch_size(config: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return a config with this number of examples per step."""
    return {**config, "data": {**config["data"], "batch_size": size}}


def find_batch_size(config: Mapping[str, Any], folder: Path) -> int:
    """Return the largest power of two that fits, found by compiling and one step.

    Args:
      config: of a run, whose batch size is `auto`.
      folder: of the run.

    Raises:
        UserError: one example is too much.
    """
    data = Data(build(with_batch_size(config, 1)["data"]).load())
    examples = len(data.splits.train)

    def setup_of(size: int) -> Setup:
        return Setup(with_batch_size(config, size), data, tried=True)

    def needed(size: int) -> int:
        setup = setup_of(size)
        compiled = setup.compiled(setup.layout(1))
        compiled.prepare()
        states, weights = compiled.states, setup.experiment.weights(compiled.states)
        held = bytes_per_device(states), bytes_per_device(weights)
        return taken(*held, beside_arguments(compiled.train))

    room = int(ROOM * runtime.free_memory(jax.local_device_count()))
    size = largest(needed, room, 2 ** int(math.log2(examples)))
    while size:
        try:
            _step(setup_of(size), folder)
        except Exception as error:
            if out_of_memory(error) is None:
                raise
            size //= 2
        else:
            log.info("data.batch_size=%d: the largest power of two that fits", size)
            return size
    raise UserError(
        f"data.batch_size=auto: a step of one example takes more than the {quantity(room, 'B')} "
        f"that a training may take here\n{LESS_MEMORY}"
    )


def largest(needed: Callable[[int], int], room: int, most: int) -> int:
    """Return the largest power of two, up to `most`, whose `needed` is within `room`, or 0."""

    def taken_by(size: int) -> int:
        found = needed(size)
        said = (quantity(found, "B"), quantity(room, "B"))
        log.info("with data.batch_size=%d a training takes %s of %s", size, *said)
        return found

    size = min(FIRST, most)
    while (now := taken_by(size)) > room:
        size //= 2
        if not size:
            return 0
    while size < most:
        # a part does not grow with the batch, so what is in proportion fits; then twice is tried
        times = 2 ** int(math.log2(max(room / now, 2)))
        larger = min(size * times, most)
        if (now := taken_by(larger)) > room:
            break
        size = larger
    return size


def _step(setup: Setup, folder: Path) -> None:
    """Take a step, whose result is not used."""
    trial = Trial(setup, setup.config, folder, Trackers([]), StopRequest())
    stack = Stack([trial], None, training=True)
    stack.begin(None)
    stack.wait()
    window = next(iter(stack.feed.windows(0, 1)))
    jax.block_until_ready(stack.step(window, window.first, 1))
