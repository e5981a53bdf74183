"""Export a run for programs that know nothing of this project.

`stablehlo` is a serialized `jax.export.Exported`: a program for CPU, CUDA and TPU with the weights
and the preprocessing inside. It takes a batch of any size, as the data are stored (images uint8
[B, H, W, C]), and returns what the objective predicts (class probabilities, float32
[B, num_classes]):

    from jax import export
    probabilities = export.deserialize(open("model.stablehlo", "rb").read()).call(images)

`onnx` is the same for ONNX Runtime. `safetensors` has the weights alone, in torchvision's names and
layouts where there are such, and beside them `model.json`, which says what they are of.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from experiments.core.config import build
from experiments.core.params import merged
from experiments.core.transfer import named
from experiments.data.dataset import INPUTS, model_input
from experiments.errors import UserError
from experiments.machine import write_whole
from experiments.models.torchvision import OWN, has_published_names, published
from experiments.ops.backend import xla_only
from experiments.tracking.terminal import Terminal
from experiments.training.restored import Restored

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
OFF = 1e-3  # most that a converted program may be off, as a share of the largest prediction


@dataclass(frozen=True)
class Export:
    """The key of `export`: the `format` of the file."""

    format: Literal["stablehlo", "safetensors", "onnx"]


def main(config: dict[str, Any], directory: Path, source: Path | None) -> None:
    """Write `model.<format>` and print what is in it."""
    wanted: Export = build(config["export"])
    terminal = Terminal()
    run = Restored(config, source, terminal)
    terminal.status("exporting")
    path = directory / f"model.{wanted.format}"
    if wanted.format == "safetensors":
        data, said = weights(run), describe(run)
        write_whole(directory / "model.json", json.dumps(said, indent=2) + "\n")
        about = f"weights in the names of {said['names']}; model.json says what they are of"
    elif wanted.format == "onnx":
        data, off = onnx_model(run)
        about = f"off by at most {off:.1e} from this project, as onnxruntime computes it"
    else:
        exported = exported_model(run)
        data = bytes(exported.serialize())
        (inputs,) = exported.in_avals
        outputs = ", ".join(aval.str_short() for aval in exported.out_avals)
        about = f"{inputs.str_short()} -> {outputs}"
    write_whole(path, data)
    print(f"{path}: {about}, {len(data) / 1e6:.1f} MB")


def program(run: Restored) -> tuple[Callable[[jax.Array], Any], str, jax.ShapeDtypeStruct]:
    """Return the function from stored inputs to predictions, and name and shape of its input.

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

    def predict(inputs: jax.Array) -> Any:
        # zeros for what only metrics read, such as labels: it does not get into the program
        size = inputs.shape[0]
        batch = {k: jnp.zeros((size, *s.shape[1:]), s.dtype) for k, s in shapes.items()}
        _, predictions = experiment.eval_step(*run.weights, batch | {name: inputs}, run.hparams)
        return predictions

    return predict, name, one


def exported_model(run: Restored) -> export.Exported:
    """Return the program from a batch of stored inputs, of any size, to predictions."""
    predict, _, one = program(run)
    (size,) = export.symbolic_shape("batch")
    inputs = jax.ShapeDtypeStruct((size, *one.shape[1:]), np.dtype(one.dtype))
    with xla_only():
        return export.export(jax.jit(predict), platforms=PLATFORMS)(inputs)


def onnx_model(run: Restored) -> tuple[bytes, float]:
    """Return the same program in the format of ONNX, and how far off ONNX Runtime computes it.

    Raises:
        UserError: the converter is not installed or cannot convert the model, or what it makes of
            it computes something else.
    """
    try:
        import onnx_ir
        import onnx_ir.passes.common as passes
        import onnxruntime
        from jax2onnx import to_onnx
    except ImportError as error:
        raise UserError(
            f"export.format=onnx: {error.name} is not installed\npip install 'experiments[onnx]'"
        ) from error
    predict, name, one = program(run)
    inputs = jax.ShapeDtypeStruct(("batch", *one.shape[1:]), one.dtype)
    kind = run.config["model"]["_target_"].rpartition(".")[2]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        # without calls of jitted functions, of which it knows none as JAX 0.12 has them
        with xla_only(), _quiet(), jax.disable_jit():
            model = to_onnx(predict, [inputs], input_names=[name], return_mode="ir")
            passes.RemoveUnusedNodesPass()(model)
            data = onnx_ir.to_proto(model).SerializeToString()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of any kind, as operations have that it does not know
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"export.format=onnx: jax2onnx cannot convert {kind}: {said}") from error
    batch = next(iter(run.batches("validation")))
    found = session.run(None, {name: np.asarray(batch[name])})
    expected = [np.asarray(leaf) for leaf in jax.tree.leaves(run.outputs(batch))]
    off = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    if not off <= OFF * max(float(np.abs(b).max()) for b in expected):
        raise UserError(
            f"export.format=onnx: jax2onnx converts {kind} wrongly: its predictions are off by "
            f"{off:.1e}"
        )
    return data, off


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Log errors alone: the converter warns of each of its parts that it does not need here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def weights(run: Restored) -> bytes:
    """Return the weights in the format of safetensors."""
    from safetensors.numpy import save

    model = run.config["model"]
    arrays = {name: np.asarray(array) for name, array in named(merged(*run.weights)).items()}
    if has_published_names(model):
        return save(published(arrays, model), {"format": "pt"})
    return save({name: np.ascontiguousarray(one) for name, one in arrays.items()}, OWN)


def describe(run: Restored) -> dict[str, Any]:
    """Return what a program has to know of the weights, in the form of JSON."""
    setup, model = run.setup, run.config["model"]
    name, one = model_input(setup.evaluation_shapes)
    pipeline = setup.experiment.pipeline
    scales = {key: getattr(pipeline, key, None) for key in ("mean", "std")}
    return {
        "names": "torchvision" if has_published_names(model) else OWN["names"],
        "model": {key: value for key, value in model.items() if key != "pretrained"},
        "data": {"name": name, "shape": list(one.shape[1:]), "type": str(np.dtype(one.dtype))},
        "input_shape": list(setup.experiment.input_shape),  # to which images are resized
        **{key: list(values) for key, values in scales.items() if values},  # for pixels in 0..1
        "classes": list(setup.splits.class_names),
    }
