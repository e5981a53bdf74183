"""This project's side of `steps.py` and `gpu.py`: the training program, many steps a dispatch.

    python -m benchmarks.our_step NAME [--quick]

Config, experiment, programs and feed are those of `run.py`; only the images are noise. Of the cases
of `gpu.py` it also tells the device, the operations of a step and the rate of a matrix product.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from benchmarks import gpu
from benchmarks.steps import BATCHES, CASES, sized
from benchmarks.turns import ROOT, serve
from experiments.core.params import count_parameters
from experiments.machine import StopRequest
from experiments.tracking.tracker import Trackers
from experiments.training.setup import Setup, Setups
from experiments.training.stack import Stack
from experiments.training.trial import Trial
from experiments.viz.summary import summarize


def composed(*overrides: str) -> dict[str, Any]:
    """The config that these overrides compose."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        plain = OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()} | {"name": "benchmark"}


def on_noise(config: Sequence[str], size: int, *overrides: str) -> dict[str, Any]:
    """The config with batches of this size, on noise."""
    own = [f"data.batch_size={size}", f"data.limit={BATCHES * size}"]
    noise = "data._target_=benchmarks.random_images.RandomImages"
    return composed(*config, *own, noise, *overrides)


def stack_of(config: dict[str, Any], trials: int = 1, width: int | None = None) -> Stack:
    """A stack of new trials of a config, whose training program is compiled.

    The programs are those of long runs.
    """
    trainer = config["trainer"] | {"epochs": 1_000_000, "shuffle_seed": 0, "figures": False}
    setups, folder, found = Setups(), Path(), []
    for seed in range(trials):
        own = config | {"trainer": trainer, "seed": seed}
        found.append(Trial(setups.of(own), own, folder, Trackers([]), StopRequest()))
    stack = Stack(found, width, training=True)
    stack.begin(None)
    stack.wait()
    return stack


def on_gpu(setup: Setup, quick: bool) -> dict[str, Any]:
    """Return what `gpu.py` compares a step with: `flops` of the model, `product_rate` a second.

    A training step counts as three evaluations of its batch: forwards, and backwards twice that.
    """
    forward = summarize(setup.config).total("flops")
    return {
        "device": jax.devices()[0].device_kind,
        "flops": 3 * setup.batch_size * forward,
        "product_rate": product_rate(gpu.QUICK_PRODUCT if quick else gpu.PRODUCT),
    }


def product_rate(side: int) -> float:
    """Operations a second of the product of two bfloat16 matrices [side, side], a median."""
    keys = jax.random.split(jax.random.key(0))
    left, right = (jax.random.normal(key, (side, side), jnp.bfloat16) for key in keys)
    product = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(gpu.PRODUCT_TURNS + 1):  # the first one warms up
        start = time.perf_counter()
        for _ in range(gpu.PRODUCTS):  # handed over while the ones before compute
            last = product(left, right)
        last.block_until_ready()
        seconds.append((time.perf_counter() - start) / gpu.PRODUCTS)
    return 2 * side**3 / statistics.median(seconds[1:])


def main() -> None:
    name, quick = sys.argv[1], "--quick" in sys.argv
    case = sized((CASES | gpu.CASES)[name], quick)
    stack = stack_of(on_noise(case.config, case.batch_size))
    window = next(iter(stack.feed.windows(0, 1)))

    def run(steps: int) -> None:
        log: Any = {}
        for done in range(0, steps, BATCHES):
            log = stack.step(window, 0, min(BATCHES, steps - done))
        jax.block_until_ready(log)

    facts = {"parameters": count_parameters(stack.setup.shapes.params)}
    serve(run, facts | (on_gpu(stack.setup, quick) if name in gpu.CASES else {}))


if __name__ == "__main__":
    main()
