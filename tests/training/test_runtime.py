"""A run says what it computes on and what it leaves idle; many trials share what there is."""

import logging

import jax
import pytest

from experiments.training import runtime
from experiments.viz.flops import Cost


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with an NVIDIA GPU, whose JAX knows the processor alone."""
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(runtime, "DEVICE_FILES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    before = jax.config.values["jax_platforms"]
    yield monkeypatch
    jax.config.update("jax_platforms", before)


def said_lines(caplog):
    caplog.clear()
    with caplog.at_level(logging.INFO):
        runtime.announce()
    return [(record.levelname, record.getMessage()) for record in caplog.records]


@pytest.mark.core
def test_a_run_names_its_jax_and_its_devices(caplog):
    ((_, line),) = said_lines(caplog)
    assert line.startswith(f"jax {jax.__version__} on CPU, ")


def test_a_gpu_that_jax_does_not_use_is_pointed_out(machine, caplog):
    assert len(said_lines(caplog)) == 1  # the tests told JAX to use the processor
    jax.config.update("jax_platforms", None)
    _, (level, line) = said_lines(caplog)
    assert level == "WARNING"
    assert "NVIDIA GPU is not used" in line
    machine.setenv("CUDA_VISIBLE_DEVICES", "")
    assert len(said_lines(caplog)) == 1


def test_trials_take_no_more_cores_than_there_is_memory_for(monkeypatch):
    monkeypatch.setattr(runtime.jax, "local_devices", lambda: list("abcdefgh"))
    monkeypatch.setattr(runtime.jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(runtime.machine, "free_memory", lambda: 3 * 2**28)
    large, tiny = 10**9, 10**6
    assert runtime.devices_for(4, Cost(large, 2**20)) == list("abcd")
    assert runtime.devices_for(16, Cost(large, 2**27)) == list("abcd")  # 0.7 of 768 MiB, 128 each
    assert runtime.devices_for(16, Cost(large, 2**40)) == ["a"]
    assert runtime.devices_for(16, Cost(tiny, 2**10)) == list("ab")
    assert runtime.devices_for(3, Cost(tiny, 2**10)) == ["a"]
