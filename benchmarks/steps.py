"""A training step in steady state against the same step in PyTorch.

`cpu_ratio` compares the seconds that all threads computed. On a machine that others use too it is
the one to go by, with a single core (`taskset -c 0 python -m benchmarks`): there no thread waits
for another one that the machine has taken from it.
"""

import statistics
from dataclasses import dataclass, replace
from importlib.util import find_spec

from benchmarks.results import LeftOutError, Pair, Record, alternate, record
from benchmarks.turns import Worker


@dataclass(frozen=True)
class Case:
    """A config to train on images of this shape, in turns of so many steps: a second of a run."""

    config: tuple[str, ...]
    batch_size: int
    image: tuple[int, int, int]
    steps: int
    classes: int = 10


CASES = {
    "lenet5": Case(("model=lenet5", "data=mnist"), 128, (28, 28, 1), 60),
    "vgg16": Case(("model=vgg16", "data=cifar10"), 32, (32, 32, 3), 4),
    "resnet20": Case(("model=resnet20", "data=cifar10"), 64, (32, 32, 3), 5),
    "lstm": Case(("model=lstm", "data=mnist"), 128, (28, 28, 1), 30),
    "autoencoder": Case(
        ("model=autoencoder", "model.hidden=[512,256]", "data=mnist"), 128, (28, 28, 1), 100
    ),
    "vae": Case(("model=vae", "data=mnist"), 128, (28, 28, 1), 100),
    "dcgan": Case(("model=dcgan", "data=mnist"), 128, (28, 28, 1), 20),
}
BATCHES = 32  # of images in memory, over which both go round
QUICK_BATCH, QUICK_SIDE = 2, 32


def sized(case: Case, quick: bool) -> Case:
    """The case itself; or, `quick`, a step of a tiny batch of images of 32 pixels at most."""
    if not quick:
        return case
    side, channels = min(QUICK_SIDE, case.image[0]), case.image[2]
    config = case.config
    if side < case.image[0]:
        config += (f"data.image_size={side}", f"data.input_shape=[{side},{side},{channels}]")
    tiny = (side, side, channels)
    return replace(case, config=config, batch_size=QUICK_BATCH, image=tiny, steps=1)


def measure(name: str, pairs: int, quick: bool, compiled: bool) -> list[Record]:
    """The step of a case against PyTorch's eager one, and also its `compiled` one.

    Raises:
        LeftOutError: PyTorch is not installed.
        RuntimeError: the two models do not have as many parameters.
    """
    check_torch()
    case = sized(CASES[name], quick)
    size = ["--quick"] if quick else []
    peers = {"PyTorch, eager": []} | ({"PyTorch, torch.compile": ["--compile"]} if compiled else {})
    results = []
    with Worker("benchmarks.our_step", name, *size) as ours:
        for label, arguments in peers.items():
            with Worker("benchmarks.peers.torch_step", name, *size, *arguments) as peer:
                measured = by_turns(name, ours, peer, case.steps, pairs)
                cpu = [statistics.median(w.cpu[-pairs:]) for w in (ours, peer)]
                facts = {
                    "cpu_seconds": cpu,
                    "cpu_ratio": cpu[1] / cpu[0],
                    "steps_a_turn": case.steps,
                    "batch_size": case.batch_size,
                }
                commands = (ours.command, peer.command)
                results.append(
                    record(f"{name}_step", label, measured, commands, **facts, **ours.facts)
                )
    return results


def check_torch() -> None:
    """Raises `LeftOutError` unless PyTorch is installed."""
    if find_spec("torch") is None:
        raise LeftOutError("PyTorch is not installed: pip install -e '.[bench]'")


def by_turns(name: str, ours: Worker, peer: Worker, steps: int, pairs: int) -> list[Pair]:
    """Seconds a step of both workers, in turns of so many steps.

    Raises:
        RuntimeError: the two models do not have as many parameters.
    """
    if ours.facts["parameters"] != peer.facts["parameters"]:
        raise RuntimeError(f"{name}: {ours.facts} and {peer.facts} are not alike")
    return alternate(lambda: ours.seconds_a_step(steps), lambda: peer.seconds_a_step(steps), pairs)
