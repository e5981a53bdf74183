"""One training on several devices: the numbers of one, and with fsdp a part of its memory each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments.training.loop import fit
from experiments.training.setup import Setups
from support import ROOT, close, composed, history_of, saved_of, trial_of

LAYERS = (
    "{conv: {features: 4, kernel: 3, stride: 2}}, batch_norm, relu, flatten, "
    "{dense: 256}, relu, {dropout: 0.3}, {dense: 256}, relu, {dense: classes}"
)
FSDP = "trainer.sharding=fsdp"
UNEVEN = 36  # examples of a batch, which eight devices do not divide


@pytest.fixture(scope="module")
def config(data_home):
    """Makes the config of a run: dropout, crops, batch norm and averages of the weights."""

    def make(name, *overrides, size=UNEVEN):
        shared = [*data_home, "model=cnn", f"model.layers=[{LAYERS}]", "data.limit=120"]
        shared += ["data.augment.crop_padding=1", "optim=momentum", "optim.ema_decay=0.9"]
        shared += ["trainer.epochs=2", "trainer.log_every=1", "trainer.figures=false"]
        shared += ["trainer.checkpoint_every=null", "logger=none", f"data.batch_size={size}"]
        return composed(*shared, *overrides) | {"name": name}

    return make


def simulated(folder: Path, *jobs: list[dict]) -> list:
    """What `simulated.py` prints of jobs on eight devices."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).with_name("simulated.py")
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "jobs.json")],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        check=True,
        timeout=300,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def on_one(folder, *configs, resume=False):
    """Trials of these configs, trained on the one device of this process."""
    setups = Setups(resumed=True)
    trials = [trial_of(one, folder / one["name"], setups=setups) for one in configs]
    if not resume:
        fit(trials, folder / "one", test=False)
    return trials


def same(a, b):
    """Two trials have the same curve and state but for rounding."""
    close(saved_of(a), saved_of(b), rtol=1e-3, atol=1e-5)
    for one, other in zip(history_of(a), history_of(b), strict=True):
        for key in one.keys() & {"train/loss", "grad_norm", "val/loss", "update_norm"}:
            assert one[key] == pytest.approx(other[key], rel=1e-3), key


def test_eight_devices_train_as_one_does_and_with_fsdp_hold_an_eighth(config, tmp_path):
    """Of a batch that they do not divide; the checkpoints are read on one device."""
    divided = config("divided", FSDP, "trainer.devices=8")
    ((*layout, first, last),) = simulated(tmp_path, [divided])
    (alone,) = on_one(tmp_path, config("alone"))
    whole = sum(leaf.nbytes for part in saved_of(alone) for leaf in jax.tree.leaves(part))
    assert layout == [1, 8, 1]
    assert first == last < whole / 6
    (there,) = on_one(tmp_path, divided, resume=True)
    same(there, alone)
