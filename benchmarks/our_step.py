"""This project's side of `steps.py`: the training program of a run, many steps a dispatch.

    python -m benchmarks.our_step NAME [--quick]

Config, experiment, programs and feed are those of `run.py`; only the images are noise.
"""

import sys
from typing import Any

import jax
import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from benchmarks.steps import BATCHES, CASES, batch_size
from benchmarks.turns import ROOT, serve
from experiments.training.program import Programs
from experiments.training.session import Session, open_session
from experiments.variables import count_parameters


def composed(*overrides: str) -> dict[str, Any]:
    """The config that these overrides compose."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        plain = OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()} | {"name": "benchmark"}


def session_of(name: str, size: int, *overrides: str) -> Session:
    """The session of a case with batches of this size, on noise."""
    own = [f"data.batch_size={size}", f"data.limit={BATCHES * size}"]
    noise = "data._target_=benchmarks.random_images.RandomImages"
    return open_session(composed(*CASES[name].config, *own, noise, *overrides))


def main() -> None:
    name, quick = sys.argv[1], "--quick" in sys.argv
    session = session_of(name, batch_size(CASES[name], quick))
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

    serve(run, {"parameters": count_parameters(state.params)})


if __name__ == "__main__":
    main()
