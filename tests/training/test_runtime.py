"""A run says what it computes on and what it leaves idle; many trials share what there is."""

import functools
import io
import logging
import os
import re
import subprocess
import sys

import jax
import pytest

from experiments.training import runtime
from experiments.training.setup import Setups
from experiments.viz.flops import Cost
from support import ROOT, composed, lines_of


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


def test_settings_of_jax_in_the_environment_change_no_result(tmp_path, data_home):
    tiny = ["model.hidden=[8]", "data.limit=128", "trainer.epochs=1", "trainer.figures=false"]
    strict = {
        "JAX_ENABLE_X64": "1",
        "JAX_DISABLE_JIT": "1",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_TRANSFER_GUARD": "disallow",
        "JAX_DEBUG_NANS": "1",
    }

    def run(name, **environment):
        command = [sys.executable, "run.py", *data_home, *tiny, "logger=none"]
        command += [f"hydra.run.dir={tmp_path / name}"]
        env = os.environ | environment
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)

    for name, environment in {"usual": {}, "strict": strict}.items():
        done = run(name, **environment)
        assert done.returncode == 0, done.stderr
    assert lines_of(tmp_path / "strict") == lines_of(tmp_path / "usual")
    said = done.stdout + done.stderr
    for name in (
        "enable_x64",
        "disable_jit",
        "dtype_promotion",
        "rank_promotion",
        "transfer_guard",
    ):
        assert len(re.findall(rf"jax_\w*{name}=.* not followed", said)) == 1
    for setting, value, words in (
        ("JAX_PLATFORMS", "nonsense", "JAX cannot begin: Unable to initialize backend 'no"),
        (
            "JAX_PLATFORMS",
            "cuda",
            "JAX cannot begin: ",
        ),  # without a GPU JAX has no words of its own
        ("JAX_ENABLE_X64", "nonsense", "JAX cannot begin: invalid truth value 'nonsense'"),
    ):
        done = run("bad", **{"CUDA_VISIBLE_DEVICES": "", setting: value})
        assert done.returncode == 2
        assert words in done.stderr
        assert f"{setting}={value}" in done.stderr
        assert "Traceback" not in done.stderr


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

    def chosen(trials: int, flops: int, memory: int, each: int = 1) -> list[str]:
        return ["".join(group) for group in runtime.devices_for(trials, Cost(flops, memory), each)]

    assert chosen(4, large, 2**20) == list("abcd")
    assert chosen(16, large, 2**27) == list("abcd")  # 0.7 of 768 MiB, 128 each
    assert chosen(16, large, 2**40) == ["a"]
    assert chosen(16, tiny, 2**10) == list("ab")
    assert chosen(3, tiny, 2**10) == ["a"]
    assert chosen(3, tiny, 2**10, each=2) == ["ab", "cd", "ef"]
    assert chosen(16, large, 2**20, each=3) == ["abc", "def"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_folder_of_programs_is_said_once(own_cache, monkeypatch, caplog):
    opened = functools.partial(io.FileIO, "/dev/full", "wb")
    monkeypatch.setattr(runtime.tempfile, "TemporaryFile", lambda dir: opened())
    runtime.set_up_compiler(str(own_cache))
    assert "no compilation cache: [Errno 28] No space left on device" in caplog.text
    assert jax.config.values["jax_compilation_cache_dir"] is None


@pytest.mark.parametrize("model", ["lenet5", "lstm"])
@pytest.mark.parametrize(("backend", "platforms"), [("gpu", ["cuda", "rocm"]), ("tpu", ["tpu"])])
def test_no_other_device_gets_what_is_made_for_a_processor(
    backend, platforms, model, monkeypatch, data_home
):
    """Lowered as where JAX has found such a device: XLA's operations alone, and no branches."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert runtime.compiler_options(0, remat=True) is None
    setup = Setups().of(composed(*data_home, f"model={model}", "logger=none"))
    batch = {
        name: jax.ShapeDtypeStruct((setup.batch_size, *split.shape[1:]), split.dtype)
        for name, split in setup.training_shapes.items()
    }
    shapes = setup.experiment.abstract_state({}), batch, {}, setup.key
    traced = jax.jit(setup.experiment.step).trace(*shapes, jax.ShapeDtypeStruct((), bool))
    for platform in platforms:
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "experiments_" not in text  # of the library in C
        assert "stablehlo.case" not in text
        assert ("stablehlo.convolution" in text) == (model == "lenet5")


def test_what_the_environment_says_in_xla_flags_is_followed(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    assert runtime.compiler_options() == runtime.CPU_OPTIONS
    assert runtime.compiler_options(0) == runtime.CPU_OPTIONS | runtime.SHORT_OPTIONS
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    assert runtime.compiler_options(0) == runtime.SHORT_OPTIONS
