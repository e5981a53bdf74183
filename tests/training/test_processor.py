"""What a process may use is what its job or its container was given."""

import os

import pytest

from experiments.training import population_width as width
from experiments.training import processor
from experiments.viz.flops import Cost


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A control group with two cores and a gigabyte, three quarters of it held, a half in files."""
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    (tmp_path / "memory.current").write_text(f"{3 * 2**28}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {2**29}\n")
    monkeypatch.setattr(processor, "_limits", lambda name: [tmp_path / name])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    return tmp_path


def test_a_quota_counts_as_so_many_cores(job):
    assert processor.cores() == 2
    (job / "cpu.max").write_text("50000 100000\n")
    assert processor.cores() == 1
    (job / "cpu.max").write_text("max 100000\n")
    assert processor.cores() == 64


def test_free_memory_is_that_of_the_job(job):
    assert processor.free_memory() == 3 * 2**28
    (job / "memory.max").write_text("max\n")
    assert processor.free_memory() > 2**20


def test_lanes_take_no_more_cores_than_there_is_memory_for(job, monkeypatch):
    monkeypatch.setattr(width.jax, "local_devices", lambda: list("abcdefgh"))
    monkeypatch.setattr(width.jax, "default_backend", lambda: "cpu")
    large, tiny = 10**9, 10**6
    assert width.devices_for(4, Cost(large, 2**20)) == list("abcd")
    assert width.devices_for(16, Cost(large, 2**27)) == list("abcd")  # 0.7 of 768 MiB, 128 each
    assert width.devices_for(16, Cost(large, 2**40)) == ["a"]
    assert width.devices_for(16, Cost(tiny, 2**10)) == list("ab")
    assert width.devices_for(3, Cost(tiny, 2**10)) == ["a"]
