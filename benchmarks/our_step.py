"""This project's side of `steps.py` and `gpu.py`: the training program, many steps a dispatch.

    python -m benchmarks.our_step NAME [--quick]

Config, experiment, programs and feed are those of `run.py`; only the images are noise. Of the cases
of `gpu.py` it also tells the device, the operations of a step and the rate of a matrix product.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from benchmarks import gpu
from benchmarks.steps import BATCHES, CASES, sized
from benchmarks.turns import ROOT, serve
from experiments.core.params import count_parameters
from experiments.training.program import Programs
from experiments.training.session import Session, open_session
from experiments.viz.summary import summarize


def composed(*overrides: str) -> dict[str, Any]:
    """The config that these overrides compose."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        plain = OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()} | {"name": "benchmark"}


def session_of(config: Sequence[str], size: int, *overrides: str) -> Session:
    """The session of a config with batches of this size, on noise."""
    own = [f"data.batch_size={size}", f"data.limit={BATCHES * size}"]
    noise = "data._target_=benchmarks.random_images.RandomImages"
    return open_session(composed(*config, *own, noise, *overrides))


def on_gpu(session: Session, quick: bool) -> dict[str, Any]:
    """What `gpu.py` compares a step with: `flops` of the model in it, `product_rate` a second.

    A training step counts as three evaluations of its batch: forwards, and backwards twice that.
    """
    forward = summarize(session.config).total("flops")
    return {
        "device": jax.devices()[0].device_kind,
        "flops": 3 * session.batch_size * forward,
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
    session = session_of(case.config, case.batch_size)
    experiment, hparams, key = session.experiment, session.hparams, session.key
    feed = session.feed
    programs = Programs(experiment, session.mesh, batch_size=session.batch_size, max_steps=BATCHES)
    state = jax.device_put(experiment.init(hparams, key), session.replicated)
    train = programs.compile_train(state, feed.arrays, hparams, key)
    order = feed.order(0)

    def run(steps: int) -> None:
        nonlocal state
        log: Any = {}
        for done in range(0, steps, BATCHES):
            count = np.int32(min(BATCHES, steps - done))
            state, log = train(state, feed.arrays, order, np.int32(0), count, hparams, key)
        jax.block_until_ready(log)

    facts = {"parameters": count_parameters(state.params)}
    serve(run, facts | (on_gpu(session, quick) if name in gpu.CASES else {}))


if __name__ == "__main__":
    main()
