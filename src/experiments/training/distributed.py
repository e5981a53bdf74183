"""Several processes that train one model together, usually one a machine.

Every process runs the same program on the same config and computes its rows of each batch. The
first one alone writes and talks to trackers. `processes.together` says who they are.

What they decide by the clock or by a signal they must decide together (`agree`), because each of
them takes part in every computation. With one process all functions here are plain and local.
"""

import json
import logging
import re
import signal
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax._src import distributed  # has what the processes tell each other
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from experiments.core.config import leaves
from experiments.core.rng import root_key
from experiments.errors import UserError
from experiments.processes import together, watch

if TYPE_CHECKING:
    from experiments.training.trial import Trial

log = logging.getLogger(__name__)

# How long a dispatch should keep the device busy: each gets its working memory anew, which costs a
# large network on a CPU a fifth of a step.
DISPATCH_SECONDS = 1.0
MEETING = 300  # seconds in which the processes must have met
FOLDER = "experiments/folder"  # of the first process, among what they tell each other
CONFIG = "experiments/config"  # of each of the others, by its number
OWN = r"(name|logger|data\.(dir|cache_dir|workers))\b"  # keys that may differ between machines


def join(folder: Path) -> Path:
    """Meet the other processes of this training, if there are any; before any use of a device.

    Args:
      folder: that of the run, if this process is the first one.

    Returns:
        The folder of the first one.

    Raises:
        UserError: the environment contradicts itself, or they did not meet within five minutes.
    """
    if (found := together.group()) is None:
        return folder
    if found.index == 0:
        log.info("%s waits for the others", found)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    try:
        jax.distributed.initialize(
            found.address,
            found.count,
            found.index,
            local_device_ids=found.devices,
            cluster_detection_method=found.detection,
            initialization_timeout=MEETING,
        )
    except (RuntimeError, ValueError) as error:
        at = f" at {found.address}" if found.address else ""
        raise UserError(
            f"{found} did not meet the others{at}: {str(error).splitlines()[0]}\n"
            f"to train alone: {together.COUNT}=1"
        ) from error
    state = distributed.global_state
    return _meet(folder) if state.num_processes > 1 else folder


def _meet(folder: Path) -> Path:
    """Have all processes write into the folder of the first one, and end with each other."""
    state = distributed.global_state
    assert state.client is not None
    assert state.coordinator_address is not None
    index, secret = state.process_id, uuid.uuid4().hex
    if index:
        logging.disable()  # the first one speaks
        folder, port, secret = json.loads(
            state.client.blocking_key_value_get(FOLDER, 1000 * MEETING)
        )
    advice = f"it goes on by resume={folder}"
    connected = watch.Watch(index, state.num_processes, advice)
    if index:
        watch.keep_output_apart(Path(folder, watch.OUTPUT.format(index)))
        host = state.coordinator_address.rpartition(":")[0].strip("[]")
        connected.connect(host, port, secret)
    else:
        port = connected.listen(secret)
        state.client.key_value_set(FOLDER, json.dumps([str(folder), port, secret]))
    watch.begin(connected)
    return Path(folder)


def check_same(config: Mapping[str, Any]) -> None:
    """Raise `UserError` in the first process if another one of this training has another config."""
    state = distributed.global_state
    if state.client is None or state.num_processes == 1:
        return
    own = {key: repr(value) for key, value in leaves(config) if not re.match(OWN, key)}
    if state.process_id:
        state.client.key_value_set(f"{CONFIG}/{state.process_id}", json.dumps(own))
        return
    for index in range(1, state.num_processes):
        text = state.client.blocking_key_value_get(f"{CONFIG}/{index}", 1000 * MEETING)
        other = json.loads(text)
        for key in own | other:
            if own.get(key) != other.get(key):
                raise UserError(
                    f"{key}: {own.get(key)} in the first process, {other.get(key)} in process "
                    f"{index}; start all of them with the same command and the same files"
                )


def is_first() -> bool:
    """Return whether this process is the one that writes; it needs no device to know that."""
    return distributed.global_state.process_id == 0


def put(array: np.ndarray | jax.Array, sharding: Sharding) -> jax.Array:
    """Put a value that every process has in full on the devices; each takes its own part."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def put_keys(seeds: Sequence[int], sharding: Sharding) -> jax.Array:
    """Return the root keys of trials, one per row, on the devices."""
    bits = jax.random.key_data(root_key(np.array(seeds)))
    return jax.random.wrap_key_data(put(bits, sharding), impl="threefry2x32")


def put_to_read(array: np.ndarray | jax.Array, sharding: Sharding) -> jax.Array:
    """Return `put` of what no program will overwrite: the cores of a processor share one copy."""
    devices = list(sharding.device_set)
    shared = sharding.is_fully_addressable and sharding.is_fully_replicated
    if not shared or len(devices) == 1 or jax.default_backend() != "cpu":
        return put(array, sharding)
    # XLA's own memory is aligned so that other devices take it as it is
    copy = np.asarray(jax.device_put(array, devices[0]))
    views = [jax.device_put(copy, device) for device in devices]
    return jax.make_array_from_single_device_arrays(copy.shape, sharding, views)


def own_rows(batch_size: int) -> range:
    """Return the rows of a batch that this process computes."""
    share = batch_size // jax.process_count()
    return range(jax.process_index() * share, (jax.process_index() + 1) * share)


def fetch(array: jax.Array | np.ndarray) -> np.ndarray:
    """Return the whole of an array, in every process."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def agree(values: Sequence[float]) -> np.ndarray:
    """Return the values of each process: float [processes, values], the same in all of them.

    Waits until all have come to this point and their devices are done with what was handed to them.
    """
    return multihost_utils.process_allgather(np.asarray(values, np.float32))


class Decisions:
    """The state of the clock and the signals at the last `look`.

    Several processes look together and see the same: a signal to any of them, and the clock of the
    first.

    Args:
      max_time: seconds from `start` after which it is `late` (None: never).
      save_every: seconds between checkpoints (None: `save_due` is never true).
      most_steps: most steps per dispatch.
    """

    def __init__(self, max_time: float | None, save_every: float | None, most_steps: int):
        self._max_time, self._save_every = max_time, save_every
        self._most_steps, self._pace = most_steps, 1
        self.signal: str | None = None
        self.asked: list[bool] = []
        self.late = self.save_due = False
        self.steps = 1

    def start(self) -> None:
        """Start the clock."""
        self._started = self._saved = time.perf_counter()

    def look(self, trials: "Sequence[Trial]") -> None:
        """Look at the clock, and at what asks trials to stop.

        All processes call it at the same point of a training; the first one has the callbacks.
        """
        now = time.perf_counter()
        names = [trial.stop.name for trial in trials]
        signals = [signal.Signals[name].value for name in names if name is not None]
        number = max(signals) if len(signals) == len(trials) else 0
        asked = [trial.trackers.stop_reason is not None for trial in trials]
        late = self._max_time is not None and now - self._started > self._max_time
        due = self._save_every is not None and now - self._saved > self._save_every
        seen = agree([number, late, due, self._pace, *asked])
        number = int(seen[:, 0].max())
        self.signal = signal.Signals(number).name if number else None
        self.late, self.save_due = bool(seen[0, 1]), bool(seen[0, 2])
        self.steps = int(seen[0, 3])
        self.asked = [bool(one) for one in seen[0, 4:]]

    def took(self, seconds: float, count: int) -> None:
        """Learn from a dispatch of `count` steps how many keep the device busy for long enough."""
        pace = DISPATCH_SECONDS * count / max(seconds, 1e-9)
        self._pace = int(np.clip(pace, 1, self._most_steps))

    def saved(self) -> None:
        """Note that a checkpoint was saved."""
        self._saved, self.save_due = time.perf_counter(), False
