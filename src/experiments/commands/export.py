"""Exports the weights of a run as a program that needs nothing of this project.

The file is a serialized `jax.export.Exported`: StableHLO for CPU, CUDA and TPU with the weights and
the preprocessing inside. It takes a batch of any size, as it is stored (images uint8 [B, H, W, C]),
and gives what the objective predicts (class probabilities, float32 [B, num_classes]):

    from jax import export
    probabilities = export.deserialize(open("model.stablehlo", "rb").read()).call(images)
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from experiments.core.experiment import Tree
from experiments.data.dataset import INPUTS, model_input
from experiments.errors import UserError
from experiments.ops.product import xla_only
from experiments.tracking.terminal import Terminal
from experiments.training.restored import saved_weights
from experiments.training.session import Session, open_session

NEEDS_RUN = True
PLATFORMS = ("cpu", "cuda", "tpu")


def main(config: dict[str, Any], directory: Path, source: Path) -> None:
    """Writes `model.stablehlo` and says what it takes and gives."""
    terminal = Terminal()
    terminal.status("reading data")
    session = open_session(config)
    weights, _ = saved_weights(session, source)
    terminal.status("exporting")
    exported = exported_model(session, jax.device_get(weights))
    path = directory / "model.stablehlo"
    data = exported.serialize()
    path.write_bytes(data)
    (taken,) = exported.in_avals
    given = ", ".join(aval.str_short() for aval in exported.out_avals)
    print(f"{path}: {taken.str_short()} -> {given}, {len(data) / 1e6:.1f} MB")


def exported_model(session: Session, weights: tuple[Tree, Tree]) -> export.Exported:
    """The program from a batch of stored inputs to predictions, batch size left open."""
    experiment, hparams = session.experiment, session.hparams
    shapes = session.evaluator("validation").shapes()
    if not any(name in shapes for name in INPUTS):
        raise UserError(
            f"mode=export takes what is stored for what the model reads, and these data are stored "
            f"as {', '.join(sorted(set(shapes) - {'mask'}))}"
        )
    name, one = model_input(shapes)
    (size,) = export.symbolic_shape("batch")

    def predict(inputs: jax.Array) -> jax.Array:
        # what only the metrics read (labels) does not matter and does not get into the program
        batch = {k: jnp.zeros((size, *s.shape[1:]), s.dtype) for k, s in shapes.items()}
        _, predictions = experiment.eval_step(*weights, batch | {name: inputs}, hparams)
        return predictions

    inputs = jax.ShapeDtypeStruct((size, *one.shape[1:]), np.dtype(one.dtype))
    with xla_only():
        return export.export(jax.jit(predict), platforms=PLATFORMS)(inputs)
