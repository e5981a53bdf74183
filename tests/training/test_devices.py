"""Trials side by side on several devices."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.training.loop import fit
from support import RATES, ROOT, close, saved_of


def spread(trials, folder, kind, leave=None):
    """The same trials trained on several devices, and what the process that did it printed."""
    given = folder / "given.json"
    given.write_text(json.dumps({"configs": [t.config for t in trials], "leave": leave}))
    script = Path(__file__).with_name("spread.py")
    dump = f"--xla_dump_to={folder}/programs --xla_dump_hlo_as_text"
    flags = dump if kind == "cores" else "--xla_force_host_platform_device_count=8"
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, str(script), str(given), str(folder / "spread"), kind],
        env=environment,
        check=True,
        timeout=300,
        stdout=subprocess.PIPE,
        text=True,
    )
    found = [copy.copy(trial) for trial in trials]
    for trial in found:
        trial.directory = folder / "spread" / trial.directory.name
    return found, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def three(trial, tmp_path):
    """Trials trained on one device, of which two leave after ten steps."""
    trials = [trial(rate, f"{i}", stop=(10, "pruned")) for i, rate in enumerate(RATES[:2])]
    trials.append(trial(RATES[2], "2"))
    fit(trials, tmp_path / "all", test=False)
    return trials


@pytest.mark.slow
def test_trials_are_spread_over_devices(three, tmp_path, data_home):
    """Devices with a trial each give the weights of one device; the last trial has all of them."""
    found, sizes = spread(three, tmp_path, "simulated", leave=10)
    assert sizes == [[3, 3], [8, 1]]
    for there, trial in zip(found, three, strict=True):
        close(saved_of(there), saved_of(trial), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_each_core_trains_trials_of_its_own(three, tmp_path, data_home):
    """The weights of one device, from data held once; the last trial has all cores for itself.

    No core waits for another within a program, which can be for ever.
    """
    found, sizes = spread(three, tmp_path, "cores", leave=10)
    assert sizes == [[2, 4], [1, 1]]
    programs = list((tmp_path / "programs").glob("*after_optimizations.txt"))
    assert any("num_partitions=2" in program.read_text() for program in programs)
    waits = re.compile(r"(all-|collective-|reduce-scatter)[\w-]*\(")
    assert not [program.name for program in programs if waits.search(program.read_text())]
    for there, trial in zip(found, three, strict=True):
        close(saved_of(there), saved_of(trial), rtol=1e-3, atol=1e-5)
