"""Training steps in bfloat16 on an NVIDIA GPU, and what it takes to feed one with pictures.

Ours are `trainer.precision=bf16`; the peer is PyTorch with `torch.compile`, channels last and
`torch.autocast`, on the same GPU, by turns. Each result also has `images_per_second` (of `gpu_lstm`
`tokens_per_second`: it reads 1024 images a step, each as 28 tokens, its rows) and
`share_of_ceiling`, both as [ours, peer]. The latter is `flops`, the operations of the model in a
step, over the seconds, over `product_rate`: the operations a second of a product of two bfloat16
matrices of 8192 x 8192 on that GPU in the same run. Both sides are held against the same
operations.

With `--quick` the steps also run without a GPU, and nothing is compiled by PyTorch.
"""

import functools
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.results import LeftOutError, Record, record
from benchmarks.steps import Case, by_turns, check_torch, sized
from benchmarks.turns import ROOT, Worker

BF16 = "trainer.precision=bf16"


def _case(model: str, batch_size: int, side: int, steps: int) -> Case:
    data, classes = ("imagenet2012", 1000) if side == 224 else ("cifar10", 10)
    config = (f"model={model}", f"data={data}", BF16)
    return Case(config, batch_size, (side, side, 3), steps, classes)


CASES = {
    "gpu_resnet50_224": _case("resnet50", 128, 224, 20),
    "gpu_vgg16_224": _case("vgg16", 64, 224, 20),
    "gpu_densenet121_224": _case("densenet121", 64, 224, 20),
    "gpu_googlenet_224": _case("googlenet", 128, 224, 20),
    "gpu_resnet18_32": _case("resnet18", 512, 32, 100),
    "gpu_vgg16_32": _case("vgg16", 512, 32, 100),
    "gpu_lstm": Case(("model=lstm", "data=mnist", BF16), 1024, (28, 28, 1), 300),
}
PRODUCT, QUICK_PRODUCT = 8192, 256  # side of the matrices
PRODUCTS, PRODUCT_TURNS = 10, 7  # products at a time, and repetitions; their median counts
RATES = (1000, 3000)  # images a second of a GPU that is to be fed; the last one is the peer
DEVICES = Path("/dev")
PROBES = {
    "JAX": "import jax; print(jax.default_backend() == 'gpu')",
    "PyTorch": "import torch; print(torch.cuda.is_available())",
}


def measure(name: str, pairs: int, quick: bool) -> list[Record]:
    """The step of a case against PyTorch's.

    Raises:
        LeftOutError: PyTorch is not installed, or there is no GPU that both can use.
        RuntimeError: the two models do not have as many parameters.
    """
    check_torch()
    if not quick:
        check_gpu()
    case = sized(CASES[name], quick)
    size = ["--quick"] if quick else []
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # or JAX takes three quarters of the GPU
    with (
        Worker("benchmarks.our_step", name, *size, environment=shared) as ours,
        Worker("benchmarks.peers.torch_gpu_step", name, *size) as peer,
    ):
        measured = by_turns(name, ours, peer, case.steps, pairs)
    label = f"PyTorch, {'eager' if quick else 'torch.compile'}, bf16"
    facts = {"batch_size": case.batch_size, "steps_a_turn": case.steps, **ours.facts}
    result = record(name, label, measured, (ours.command, peer.command), **facts)
    seconds = [result["ours_seconds"], result["peer_seconds"]]
    read, unit = case.batch_size, "images_per_second"
    if name == "gpu_lstm":
        read, unit = read * case.image[0], "tokens_per_second"
    rates = {
        unit: [read / taken for taken in seconds],
        "share_of_ceiling": [facts["flops"] / taken / facts["product_rate"] for taken in seconds],
    }
    return [result | rates]


def gpu_input(pairs: int, quick: bool) -> list[Record]:
    """Decoding of a stream of photographs against a GPU of `RATES[-1]` images a second.

    Seconds are those of an image, decoded by the most workers of 1, 2, 4, ... with a core each.
    The result has `images_per_second` [ours, peer], `by_workers`, the same of ours by the number of
    workers, and `workers_needed` by the rate of a GPU, if more workers give as much each.
    """
    command = ["-m", "benchmarks.decoding", str(pairs), *(["--quick"] if quick else [])]
    ended = subprocess.run(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    found = json.loads(ended.stdout.splitlines()[-1])
    by_workers = {int(count): seconds for count, seconds in found.pop("seconds").items()}
    most = max(by_workers)
    rate = RATES[-1]
    measured = [(seconds, 1 / rate) for seconds in by_workers[most]]
    compared = (f"python {' '.join(command)}", "a rate")
    result = record("gpu_input", f"GPU of {rate} images a second", measured, compared, **found)
    ours = 1 / result["ours_seconds"]
    return [
        result
        | {
            "images_per_second": [ours, rate],
            "by_workers": {n: 1 / statistics.median(taken) for n, taken in by_workers.items()},
            "workers_needed": {needed: math.ceil(needed * most / ours) for needed in RATES},
        }
    ]


def check_gpu() -> None:
    """Raises `LeftOutError` unless JAX and PyTorch both see a GPU; asks them in other processes."""
    blind = list(PROBES)
    if any(DEVICES.glob("nvidia[0-9]*")):
        blind = [name for name, code in PROBES.items() if not _prints_true(code)]
    if len(blind) == len(PROBES):
        raise LeftOutError("there is no GPU here")
    if blind:
        raise LeftOutError(f"{blind[0]} does not see the GPU that is here")


@functools.cache
def _prints_true(code: str) -> bool:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() == "True"
