"""The weights that `model.pretrained` names, to start from in the place of new ones."""

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.core.experiment import State
from experiments.core.params import merged
from experiments.core.transfer import Agreement, agreement, named
from experiments.errors import UserError
from experiments.models.torchvision import read_published
from experiments.training.saved import CHECKPOINTS, split_source
from experiments.training.session import Session

log = logging.getLogger(__name__)

SHOWN = 6  # names in a line of the log
Found = dict[str, np.ndarray]


def pretrained_weights(session: Session, shapes: State) -> Found | None:
    """Arrays by dotted name, or None; says which of them fit a state of these shapes.

    Raises:
        UserError: there are no such weights, or none of them fits.
    """
    source = session.config["model"].get("pretrained")
    if source is None:
        return None
    found = read(Path(source), session.config["model"])
    wanted = merged(shapes.params, shapes.model_state)
    result = agreement(found, wanted)
    if not result.fitting:
        here = _some(named(wanted))
        raise UserError(
            f"model.pretrained={source}: none of its weights fits the model\n"
            f"it has {_some(found)}; the model has {here}"
        )
    for line in report(result, named(wanted)):
        log.info("%s: %s", source, line)
    return found


def read(source: Path, model: dict[str, Any]) -> Found:
    """The weights in a run folder, a checkpoint of it or a `.safetensors` file, by dotted name.

    Raises:
        UserError: `source` is none of these, or cannot be read.
    """
    if source.suffix == ".safetensors":
        return read_published(source, model)
    if source.suffix in (".pt", ".pth", ".bin"):
        raise UserError(
            f"model.pretrained={source}: a pickle runs code when it is read; save it as "
            f"safetensors: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        )
    return read_run(source)


def read_run(source: Path) -> Found:
    """The best weights of a run, or those of one step for `<run folder>/checkpoints/<step>`."""
    import orbax.checkpoint as ocp  # takes seconds to import

    folder, step = split_source(source)
    item = "best" if step is None else "state"
    manager = ocp.CheckpointManager(
        (folder / CHECKPOINTS).absolute(), item_handlers={item: ocp.StandardCheckpointHandler()}
    )
    steps = sorted(manager.all_steps(), reverse=True) if step is None else [step]
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    for step in steps:
        try:
            shapes = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here),
                manager.item_metadata(step)[item],
            )
            tree = manager.restore(
                step, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(shapes)})
            )[item]
        except Exception as error:
            log.warning("checkpoint %s cannot be read: %s", step, str(error).splitlines()[0][:200])
            continue
        if item == "state":
            tree = tree["ema"] or (tree["params"], tree["model_state"])
        return {n: np.asarray(a) for part in tree for n, a in named(part).items()}
    raise UserError(f"model.pretrained={source}: no checkpoint in {folder} can be read")


def report(result: Agreement, wanted: dict[str, Any]) -> Iterable[str]:
    """What was loaded, skipped and new, in plain lines."""

    def values(names: Iterable[str]) -> int:
        return sum(math.prod(wanted[name].shape) for name in names)

    yield (
        f"loaded {len(result.fitting)} of {len(wanted)} arrays, "
        f"{values(result.fitting):,} of {values(wanted):,} values"
    )
    if result.of_other_shape:
        pairs = (f"{n} {a} (here {b})" for n, (a, b) in result.of_other_shape.items())
        yield f"skipped, of another shape: {_some(pairs)}"
    if result.unwanted:
        yield f"skipped, not in this model: {_some(result.unwanted)}"
    if result.new:
        yield f"new: {_some(result.new)}"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
