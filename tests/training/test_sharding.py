"""One training on several devices: the numbers of one, and with fsdp a part of its memory each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from experiments.core.params import gathered
from experiments.training import runtime
from experiments.training.loop import fit
from experiments.training.setup import Setups
from experiments.viz.flops import Cost
from support import ROOT, close, composed, history_of, saved_of, trial_of

UNIT = "{dense: 256}, batch_norm, relu, {dropout: 0.3}"
LAYERS = f"flatten, {UNIT}, {UNIT}, {{dense: classes}}"
FSDP = "trainer.sharding=fsdp"
UNEVEN = 36  # examples of a batch, which eight devices do not divide


@pytest.fixture(scope="module")
def config(data_home):
    """Makes the config of a run: dropout, crops, batch norm and averages of the weights."""

    def make(name, *overrides, size=UNEVEN):
        shared = [*data_home, "model=cnn", f"model.layers=[{LAYERS}]", "data.limit=120"]
        shared += ["data.augment.crop_padding=1", "optim=momentum", "optim.ema_decay=0.9"]
        shared += ["trainer.epochs=1", "trainer.log_every=1", "trainer.figures=false"]
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


def on_one(folder, *configs, train=True):
    """Trials of these configs, trained on the one device of this process, or go on there."""
    setups = Setups(resumed=True)
    trials = [trial_of(one, folder / one["name"], setups=setups) for one in configs]
    if train:
        fit(trials, folder / "one", test=False, resume=True)
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
    assert first == last < whole / 5
    (there,) = on_one(tmp_path, divided, train=False)
    same(there, alone)


@pytest.mark.slow
def test_runs_go_on_on_other_devices_streams_and_populations_too(config, tmp_path):
    """One goes on on eight devices, another comes from there; three train side by side."""
    eight, longer = (FSDP, "trainer.devices=8"), ("trainer.epochs=2",)
    stream = ("data.stream=true", "data.workers=0")
    seeds = [config(f"seed{seed}", *eight) | {"seed": seed} for seed in range(3)]
    on_one(tmp_path, config("there"))
    found = simulated(
        tmp_path,
        [config("there", *eight, *longer)],
        [config("back", "trainer.devices=8", size=40)],
        [config("streamed", *stream, "trainer.devices=8")],
        seeds,
    )
    assert [one[:3] for one in found] == [[1, 8, 1], [1, 8, 1], [1, 8, 1], [1, 8, 3]]
    (uninterrupted,) = on_one(tmp_path, config("uninterrupted", *longer))
    same(*on_one(tmp_path, config("there", *longer), train=False), uninterrupted)
    back = on_one(tmp_path, config("back", "trainer.devices=8", *longer, size=40))
    same(*back, *on_one(tmp_path, config("not back", *longer, size=40)))
    (streamed,) = on_one(tmp_path, config("streamed", *stream), train=False)
    same(streamed, *on_one(tmp_path, config("also streamed", *stream)))
    for own in seeds:
        (trained,) = on_one(tmp_path, own, train=False)
        same(trained, *on_one(tmp_path, own | {"name": f"{own['name']} alone"}))


@pytest.mark.slow
def test_recurrent_and_generative_models_are_divided_too(tmp_path):
    shared = ["trainer.steps=3", "trainer.log_every=1", "trainer.figures=false", "data.limit=256"]
    shared += ["trainer.checkpoint_every=null", "logger=none", "optim=momentum"]
    models = [["model=gan", "model.hidden=[256]"], ["model=lstm"], ["model=vae"]]
    made = [composed(*model, *shared) | {"name": model[0][6:]} for model in models]
    divided = [composed(*model, *shared, FSDP, "trainer.devices=8") for model in models]
    jobs = [
        [one | {"name": f"{own['name']} divided"}] for one, own in zip(divided, made, strict=True)
    ]
    found = simulated(tmp_path, *jobs)
    for own, (job,), (*_, held, _) in zip(made, jobs, found, strict=True):
        (alone,), (there,) = on_one(tmp_path, own), on_one(tmp_path, job, train=False)
        whole = sum(leaf.nbytes for part in saved_of(alone) for leaf in jax.tree.leaves(part))
        assert held < whole / 4
        same(there, alone)


@pytest.mark.slow
def test_trials_side_by_side_have_several_devices_each(config, tmp_path):
    """Three on pairs, with whole states or parts of them; five on two groups of four."""
    jobs = []
    for name, count, own in (
        ("whole", 3, ["trainer.devices=2"]),
        ("part", 3, ["trainer.devices=2", FSDP]),
        ("many", 5, ["trainer.devices=4", FSDP]),
    ):
        jobs.append([config(f"{name}{i}", *own) | {"seed": i} for i in range(count)])
    whole, part, many = simulated(tmp_path, *jobs)
    assert (whole[:3], part[:3], many[:3]) == ([3, 2, 3], [3, 2, 3], [2, 4, 6])
    assert part[3] < 0.6 * whole[3]  # of a pair each holds a half
    configs = [config(f"alone{i}") | {"seed": i} for i in range(5)]
    alone = on_one(tmp_path, *configs, train=False)
    for trial in alone:
        fit([trial], tmp_path, test=False)
    for job in jobs:
        for trained, own in zip(on_one(tmp_path, *job, train=False), alone, strict=False):
            same(trained, own)


def test_steps_that_are_too_small_to_share_have_one_device(config, monkeypatch):
    devices = jax.local_devices() * 8
    mesh = Mesh(np.array(devices).reshape(1, -1), ("trial", "data"))
    assert not runtime.worth_sharing(mesh, lambda: Cost(10**9, 0))
    assert runtime.worth_sharing(mesh, lambda: Cost(10**11, 0))
    assert runtime.worth_sharing(Mesh(mesh.devices[:, :1], mesh.axis_names), None)


def test_weights_of_trials_that_have_a_device_each_stay_as_they_are():
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("trial", "data"))
    place = PartitionSpec("trial")
    spread = jax.shard_map(jax.vmap(gathered), mesh=mesh, in_specs=place, out_specs=place)
    np.testing.assert_array_equal(jax.jit(spread)(jnp.ones((2, 3))), 1)
