"""The result of a benchmark: one record a comparison, the same for all of them."""

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from experiments.machine import cores, processor
from experiments.ops.library import features

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "lightning", "wandb", "hydra-core")
KINDS = (("AMX", "amx_bf16"), ("AVX-512", "avx512f"), ("AVX2", "avx2"), ("NEON", "asimd"))

Pair = tuple[float, float]
Record = dict[str, Any]


class LeftOutError(Exception):
    """A benchmark that cannot run here, and why."""


def record(name: str, peer: str, pairs: Sequence[Pair], compared: Pair | tuple, **more) -> Record:
    """A result as JSON.

    `pairs` are (ours, peer) in seconds, each pair measured one right after the other; `ratio` is
    peer over ours, the median of the pairs. `compared` names both commands or functions.
    """
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {
        "name": name,
        "peer": peer,
        "ours_seconds": ours,
        "peer_seconds": theirs,
        "ratio": statistics.median(peer / ours for ours, peer in pairs),
        "pairs": [[float(f"{seconds:.4g}") for seconds in pair] for pair in pairs],
        "compared": list(compared),
        **more,
    }


def alternate(ours: Callable[[], float], peer: Callable[[], float], pairs: int) -> list[Pair]:
    """Return the results of both, called by turns; the first to go changes from pair to pair."""
    measured = []
    for index in range(pairs):
        if index % 2:
            theirs = peer()
            measured.append((ours(), theirs))
        else:
            measured.append((ours(), peer()))
    return measured


def surroundings() -> Record:
    """The machine, how busy it is, and the versions of what is compared."""
    found = {name: _version(name) for name in PACKAGES}
    return {
        "machine": machine(),
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version(), **{k: v for k, v in found.items() if v}},
    }


def machine() -> str:
    """The processor, its kind by what computes fastest in it, and the cores that we may use."""
    kind = next((f" with {name}" for name, flag in KINDS if flag in features()), "")
    return f"{processor()}{kind}, {cores()} cores"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
