"""A run says what it computes on, and what it leaves idle."""

import logging

import jax
import pytest

from experiments.training import devices


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with an NVIDIA GPU, whose JAX knows the processor alone."""
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(devices, "DEVICE_FILES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    before = jax.config.values["jax_platforms"]
    yield monkeypatch
    jax.config.update("jax_platforms", before)


def told(caplog):
    caplog.clear()
    with caplog.at_level(logging.INFO):
        devices.announce()
    return [(record.levelname, record.getMessage()) for record in caplog.records]


@pytest.mark.core
def test_a_run_names_its_jax_and_its_devices(caplog):
    ((_, line),) = told(caplog)
    assert line.startswith(f"jax {jax.__version__} on CPU, ")


def test_a_gpu_that_jax_does_not_use_is_pointed_out(machine, caplog):
    assert len(told(caplog)) == 1  # the tests told JAX to use the processor
    jax.config.update("jax_platforms", None)
    _, (level, line) = told(caplog)
    assert level == "WARNING"
    assert "NVIDIA GPU is not used" in line
    machine.setenv("CUDA_VISIBLE_DEVICES", "")
    assert len(told(caplog)) == 1
