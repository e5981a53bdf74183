"""Workers and runs share the GPUs of a machine and their memory, on a machine that has none."""

import subprocess
import sys

import pytest

from experiments.errors import UserError
from experiments.processes import gpus
from experiments.search import local


def test_workers_share_a_gpu_by_the_name_that_jaxlib_reads(monkeypatch):
    """Of the old name and the new one together jaxlib makes an error."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    for name in gpus.MEMORY:
        monkeypatch.delenv(name, raising=False)
    assert gpus.environment(1, 2)["CUDA_VISIBLE_DEVICES"] == "5"
    assert not set(gpus.MEMORY) & gpus.environment(1, 2).keys()
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".8")
    shared = gpus.environment(2, 4)
    assert shared["CUDA_VISIBLE_DEVICES"] == "3"
    assert shared["XLA_CLIENT_MEM_FRACTION"] == "0.400"
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in shared
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert gpus.environment(2, 4)["CUDA_VISIBLE_DEVICES"] == "3,5"
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.environment(0, 4)["XLA_PYTHON_CLIENT_MEM_FRACTION"] == ".8"


def test_workers_have_as_many_gpus_as_they_are_to(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    for name in gpus.MEMORY:
        monkeypatch.delenv(name, raising=False)

    def planned(**options) -> list[tuple[str, str | None]]:
        count, each = local.worker_count(options), local.gpus_per_worker(options)
        found = [gpus.environment(slot, count, each) for slot in range(count)]
        return [(one["CUDA_VISIBLE_DEVICES"], one.get(gpus.MEMORY[0])) for one in found]

    assert planned(workers="auto") == [(str(gpu), None) for gpu in range(8)]
    pairs = [("0,1", None), ("2,3", None), ("4,5", None), ("6,7", None)]
    assert planned(workers="auto", gpus_per_worker=2) == pairs
    assert planned(workers=2, gpus_per_worker=3) == [("0,1,2", None), ("3,4,5", None)]
    shared = planned(workers=3, gpus_per_worker=4)  # the third shares, with all in equal parts
    assert shared == [("0,1,2,3", "0.450"), ("4,5,6,7", "0.450"), ("0,1,2,3", "0.450")]
    with pytest.raises(UserError, match="gpus_per_worker=9: JAX may use 8 GPUs"):
        planned(gpus_per_worker=9)
    with pytest.raises(UserError, match=r"of a cluster say cluster\.gpus=2"):
        planned(gpus_per_worker=2, cluster={"name": "slurm"})
    local.check_gpus(2, {"gpus_per_worker": 8})  # four trials side by side
    with pytest.raises(UserError, match=r"trainer\.devices=2: .* say gpus_per_worker=2"):
        local.check_gpus(2, {"workers": 2})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.worker_count({"workers": "auto"}) == 1
    local.check_gpus(2, {"workers": 2})  # devices of a processor are no worker's own


@pytest.fixture
def described(tmp_path, monkeypatch):
    """A machine with these GPUs of NVIDIA's: index, identifier, MiB used, MiB in all."""
    for name in (*gpus.CHOSEN, gpus.NVIDIA, gpus.AMD, gpus.ROCR, "JAX_PLATFORMS"):
        monkeypatch.setenv(name, "")  # so that what is set is unset again
        monkeypatch.delenv(name)

    def describe(*lines: str) -> None:
        program = tmp_path / "nvidia-smi"
        said = "\n".join(lines)
        listed = "\n".join(f"GPU {i}: H200" for i in range(len(lines)))
        program.write_text(
            f'#!/bin/sh\nif [ "$1" = -L ]; then echo "{listed}"; else echo "{said}"; fi'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return describe


def test_a_run_beside_others_takes_memory_as_it_needs_it(described, monkeypatch):
    described("0, GPU-aa, 500, 143771", "1, GPU-bb, 107000, 143771")
    monkeypatch.setenv(gpus.NVIDIA, "0")
    assert gpus.take_what_is_left() is None  # what a driver holds
    monkeypatch.setenv(gpus.NVIDIA, "0,1")
    assert gpus.take_what_is_left([0]) is None  # the other one is another process's
    monkeypatch.setenv(gpus.NVIDIA, "GPU-bb")
    assert gpus.take_what_is_left() == "GPU 1 has 107,000 of 143,771 MiB taken"
    assert gpus.os.environ.pop(gpus.PREALLOCATE) == "false"
    monkeypatch.setenv(gpus.MEMORY[0], "0.45")  # a worker's share
    assert gpus.take_what_is_left() is None
    assert gpus.PREALLOCATE not in gpus.os.environ


def test_the_gpus_of_both_makers_are_shared(described, tmp_path, monkeypatch):
    described("0, GPU-aa, 0, 1", "1, GPU-bb, 0, 1")
    assert [gpus.environment(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["0", "1"]
    described()
    monkeypatch.setattr(gpus, "NODES_OF_AMD", tmp_path)
    for node, units in enumerate((0, 304, 304)):  # the first one is the processor
        (tmp_path / str(node)).mkdir()
        (tmp_path / f"{node}/properties").write_text(f"cpu_cores_count 8\nsimd_count {units}\n")
    assert gpus.visible() == ["0", "1"]
    shares = [gpus.environment(slot, 4) for slot in range(4)]
    assert [share["HIP_VISIBLE_DEVICES"] for share in shares] == ["0", "1", "0", "1"]
    assert {share[gpus.MEMORY[0]] for share in shares} == {"0.450"}
    monkeypatch.setattr(gpus, "DRIVERS", tmp_path)
    for node, used in ((1, 2**26), (2, 2**36)):
        with (tmp_path / f"{node}/properties").open("a") as file:
            file.write(f"drm_render_minor {127 + node}\n")
        device = tmp_path / f"renderD{127 + node}" / "device"
        device.mkdir(parents=True)
        for what, size in {"used": used, "total": 2**37}.items():
            (device / f"mem_info_vram_{what}").write_text(f"{size}\n")
    assert gpus.take_what_is_left([0]) is None
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "1")
    assert gpus.take_what_is_left() == "GPU 1 has 65,536 of 131,072 MiB taken"
    monkeypatch.delenv(gpus.PREALLOCATE)
    # HIP counts from 0 what ROCR_VISIBLE_DEVICES shows
    assert gpus.environment(0, 1)["HIP_VISIBLE_DEVICES"] == "0"
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "-1")
    assert gpus.hidden()
    assert gpus.visible() == []


@pytest.mark.slow
def test_no_module_takes_a_device_as_it_is_imported():
    program = """
import importlib, os, pkgutil
os.environ["JAX_PLATFORMS"] = "none"  # to use it is an error
import experiments
for module in pkgutil.walk_packages(experiments.__path__, "experiments."):
    importlib.import_module(module.name)
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()"""
    subprocess.run([sys.executable, "-c", program], check=True)
