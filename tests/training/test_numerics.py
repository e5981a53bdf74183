"""How exactly a run computes is said, set, recorded, and the same when it goes on."""

import json
from types import SimpleNamespace

import jax
import pytest

from experiments.errors import UserError
from experiments.training.devices import numerics
from experiments.training.devices.numerics import DETERMINISTIC, FLOAT32, PRECISION, compute_as
from support import TINY


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_hlo_as_text=false")  # not read any more
    before = jax.config.values[PRECISION]
    yield
    jax.config.update(PRECISION, before)


@pytest.mark.core
def test_this_xla_knows_the_flag_for_determinism():
    """It would abort a process that is given one that it does not know."""
    name, _, value = DETERMINISTIC.removeprefix("--").partition("=")
    lowered = jax.jit(lambda x: 2 * x).lower(1.0)
    lowered.compile(compiler_options={name: value == "true"})
    with pytest.raises(Exception, match="xla_gpu_nonsense"):
        lowered.compile(compiler_options={"xla_gpu_nonsense": True})


@pytest.mark.slow
def test_a_run_says_how_it_computes_and_goes_on_so(run_cli, tmp_path, monkeypatch):
    monkeypatch.setattr(numerics.backend, "products", lambda numbers: 3)  # as on matrix units
    folder = tmp_path / "run"
    asked = ["trainer.matmul_precision=high", "trainer.deterministic=true"]
    code, said = run_cli(*TINY, "trainer.epochs=1", *asked, folder=folder)
    assert code == 0
    assert "products of float32: three products of bfloat16" in said
    compute_as({})
    assert jax.config.values[PRECISION] is None
    assert run_cli(f"resume={folder}", "trainer.epochs=2", folders=False)[0] == 0
    assert jax.config.values[PRECISION] == "high"
    starts = json.loads((folder / "provenance.json").read_text())["starts"]
    assert [start["products"] for start in starts] == [
        "three products of bfloat16 in convolutions"
    ] * 2
    assert all(DETERMINISTIC in start["environment"]["XLA_FLAGS"] for start in starts)


def test_all_runs_of_a_process_compute_alike():
    compute_as({"matmul_precision": "high"}, {"matmul_precision": "high"})
    with pytest.raises(UserError, match=r"trainer\.deterministic: all runs of a process"):
        compute_as({"deterministic": True}, {})


def test_a_gpu_that_is_in_use_is_too_late_for_determinism(monkeypatch):
    monkeypatch.setattr(numerics.jax, "default_backend", lambda: "gpu")
    with pytest.raises(UserError, match=f"start it with XLA_FLAGS={DETERMINISTIC}"):
        compute_as({"deterministic": True})
    monkeypatch.setenv("XLA_FLAGS", DETERMINISTIC)
    compute_as({"deterministic": True})


@pytest.mark.parametrize(
    ("device", "asked", "said"),
    [
        ({"platform": "gpu", "compute_capability": "9.0"}, None, "TF32"),
        ({"platform": "gpu", "compute_capability": "8.6"}, "high", "TF32"),  # which XLA takes as it
        ({"platform": "gpu", "compute_capability": "9.0"}, "highest", FLOAT32),
        ({"platform": "gpu", "compute_capability": "7.5"}, None, FLOAT32),
        ({"platform": "gpu", "compute_capability": "gfx90a"}, None, FLOAT32),
        ({"platform": "tpu"}, None, "bfloat16"),
        ({"platform": "tpu"}, "high", "three products of bfloat16"),
        ({"platform": "cpu"}, "default", FLOAT32),
        ({"platform": "cpu"}, None, FLOAT32),
    ],
)
def test_the_products_of_each_device_are_named(monkeypatch, device, asked, said):
    monkeypatch.setattr(numerics.jax, "devices", lambda: [SimpleNamespace(**device)])
    jax.config.update(PRECISION, asked)
    assert numerics.products().startswith(said)
