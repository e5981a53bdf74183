"""Workers and runs share the GPUs of a machine and their memory, on a machine that has none."""

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
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.worker_count({"workers": "auto"}) == 1
