"""Export the weights of a run as a program that needs nothing of this project.

The file is a serialized `jax.export.Exported`: StableHLO for CPU, CUDA and TPU with the weights and
the preprocessing inside. It takes a batch of any size, as the data are stored (images uint8
[B, H, W, C]), and returns what the objective predicts (class probabilities, float32
[B, num_classes]):

    from jax import export
    probabilities = export.deserialize(open("model.stablehlo", "rb").read()).call(images)
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from experiments.data.dataset import INPUTS, model_input
from experiments.errors import UserError
from experiments.machine import write_whole
from experiments.ops.product import xla_only
from experiments.tracking.terminal import Terminal
from experiments.training.restored import Restored

PLATFORMS = ("cpu", "cuda", "tpu")


def main(config: dict[str, Any], directory: Path, source: Path) -> None:
    """Write `model.stablehlo` and print the shapes of its input and output."""
    terminal = Terminal()
    run = Restored(config, source, terminal)
    terminal.status("exporting")
    exported = exported_model(run)
    path = directory / "model.stablehlo"
    data = exported.serialize()
    write_whole(path, data)
    (inputs,) = exported.in_avals
    outputs = ", ".join(aval.str_short() for aval in exported.out_avals)
    print(f"{path}: {inputs.str_short()} -> {outputs}, {len(data) / 1e6:.1f} MB")


def exported_model(run: Restored) -> export.Exported:
    """Return the program from a batch of stored inputs, of any size, to predictions.

    Raises:
        UserError: the model reads what is not stored as such.
    """
    experiment, shapes = run.setup.experiment, run.setup.evaluation_shapes
    if not any(name in shapes for name in INPUTS):
        raise UserError(
            f"mode=export is for models that read data as they are stored, one of "
            f"{', '.join(INPUTS)}; these are stored as {', '.join(sorted(set(shapes) - {'mask'}))}"
        )
    name, one = model_input(shapes)
    (size,) = export.symbolic_shape("batch")

    def predict(inputs: jax.Array) -> jax.Array:
        # zeros for what only metrics read, such as labels: it does not get into the program
        batch = {k: jnp.zeros((size, *s.shape[1:]), s.dtype) for k, s in shapes.items()}
        _, predictions = experiment.eval_step(*run.weights, batch | {name: inputs}, run.hparams)
        return predictions

    inputs = jax.ShapeDtypeStruct((size, *one.shape[1:]), np.dtype(one.dtype))
    with xla_only():
        return export.export(jax.jit(predict), platforms=PLATFORMS)(inputs)
