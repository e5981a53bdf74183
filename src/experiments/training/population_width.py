"""How lanes are divided: over how many devices, and how many side by side on each."""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from experiments.core.experiment import State, Tree
from experiments.training import processor
from experiments.training.population_programs import PopulationPrograms
from experiments.viz.flops import Cost

log = logging.getLogger(__name__)

SHARE_OF_MEMORY = 0.7  # of what is free, the most that a program may take
FILLS_CPU = 2e-3  # seconds of a lane's step from which nothing is gained side by side
# Operations of a lane's step below which a CPU always gains from more side by side: its overhead
# is all that counts, and no other width need be compiled to compare with.
TINY = 2e7
TINY_LANES = 8  # of such steps, the fewest that are worth a core of their own
LARGE = 4e8  # and those that take any core longer than FILLS_CPU, so that nothing need be timed
TRIAL_STEPS = 4  # steps of a timing


class Sized(NamedTuple):
    """Compiled programs of a population, and how many lanes of a device they run side by side."""

    width: int
    train: Any
    evaluate: Any


def devices_for(lanes: int, cost: Cost) -> list[jax.Device]:
    """The devices to spread so many lanes over, each a whole number of them.

    Of a CPU's cores as many as there is memory for, if each held all that a step stores. That is
    1.1 times what its program holds for LeNet-5, 3 times for VGG-16, 5 times for DenseNet-121. Of
    tiny steps some on each: with 2 lanes on each of 64 devices an epoch of an MLP spends 40 ms on
    putting together what they came to.

    Args:
      cost: of a lane's step.
    """
    devices = jax.local_devices()[:lanes]
    if jax.default_backend() == "cpu":
        fit = int(SHARE_OF_MEMORY * processor.free_memory()) // max(cost.memory, 1)
        most = min(fit, lanes // TINY_LANES) if cost.flops < TINY else fit
        devices = devices[: max(most, 1)]
    return devices


def choose_width(
    programs: PopulationPrograms,
    states: State,
    inputs: tuple[Mapping, Tree, Any],
    batch: Mapping,
    flops: int,
    width: int | None,
    time_one: Callable[[Any, int], float] | None,
    once: Callable[[tuple, Callable[[], Any]], Any],
) -> Sized | None:
    """Compiles for lanes with these states; of several widths takes the one that runs fastest.

    Args:
      states: shapes of the stack.
      inputs: shapes of what else the training program takes: the data, hyperparameters and keys.
      batch: shapes of a batch of evaluation.
      flops: of a lane's step.
      width: the one that is asked for, if any.
      time_one: the seconds that a training program takes for so many steps. Without it None is
        returned where several widths would have to be timed, once the first one is compiled.
      once: gives what a function makes, under a key, the first time.
    """
    arrays, hparams, keys = inputs
    local = keys.shape[0] // programs.mesh.size
    candidates = sorted({1, min(8, local), local}) if local > 16 else sorted({1, local})
    if width is not None:
        candidates = [min(width, local)]
    elif jax.default_backend() == "cpu" and flops < TINY:
        candidates = [local]
        log.info("all %d lanes side by side: a step of one is tiny", local)
    elif jax.default_backend() == "cpu" and flops > LARGE:
        candidates = [1]
        log.info("one lane after another: a step of one is large")

    work = flops * keys.shape[0] * programs.experiment.total_steps

    def compile_one(width: int) -> Any:
        def make() -> Any:
            devices = f" on {programs.mesh.size} devices" if programs.mesh.size > 1 else ""
            log.info("compiling for %d lanes%s, %d side by side", keys.shape[0], devices, width)
            return programs.compile_train(states, arrays, hparams, keys, width, work)

        return once(("train", width), make)

    def compile_evaluation(width: int) -> Any:
        weights = programs.experiment.weights(states)
        return once(
            ("evaluate", width),
            lambda: programs.compile_eval(weights, batch, hparams, width, work),
        )

    narrowest = candidates[0]
    with ThreadPoolExecutor() as pool:
        evaluating = pool.submit(compile_evaluation, narrowest)
        found = {narrowest: compile_one(narrowest)}
        evaluate = evaluating.result()  # before anything is timed
        if len(candidates) == 1:
            return Sized(narrowest, found[narrowest], evaluate)
        if time_one is None:
            return None
        if not fills_device(time_one(found[narrowest], 1), local):
            found |= zip(candidates[1:], pool.map(compile_one, candidates[1:]), strict=True)
    chosen = narrowest if len(found) == 1 else fastest(found, time_one, programs.mesh.size)
    if chosen != narrowest:
        evaluate = compile_evaluation(chosen)
    return Sized(chosen, found[chosen], evaluate)


def fastest(
    programs: Mapping[int, Any], time_one: Callable[[Any, int], float], devices: int
) -> int:
    """Of several widths, in rising order, the one whose program fits and runs fastest."""
    times: dict[int, float] = {}
    for width, program in programs.items():
        needed = program.memory_analysis().temp_size_in_bytes
        if times and needed > SHARE_OF_MEMORY * free_memory(devices):
            log.info("%d lanes side by side would need too much memory", width)
            continue
        times[width] = time_one(program, TRIAL_STEPS)
        log.info(
            "%d lanes side by side: %.3g s for %d steps of all", width, times[width], TRIAL_STEPS
        )
    return min(times, key=lambda width: times[width])


def fills_device(seconds: float, lanes: int) -> bool:
    """Whether lanes one by one keep a CPU too busy to gain from a wider batch.

    That spares compiling wider programs. LeNet-5 takes 14 ms a lane and step one by one and 30 in
    a batch of 16; an MLP of 32 units 0.07 and 0.04 (two busy cores).

    Args:
      seconds: what a step of all lanes took, one by one.
    """
    each = seconds / lanes
    if busy := jax.default_backend() == "cpu" and each > FILLS_CPU:
        log.info("one lane after another: a step of one takes %.3g s", each)
    return busy


def free_memory(devices: int) -> int:
    """Bytes that are free on each of so many devices; the cores of a CPU have them in common."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics["bytes_in_use"]
    return processor.free_memory() // devices


def timed(call: Callable[[int], Any], steps: int) -> float:
    """The seconds of so many steps; one before them warms up."""
    jax.block_until_ready(call(1))
    start = time.perf_counter()
    jax.block_until_ready(call(steps))
    return time.perf_counter() - start
