"""Memory that is not enough is said in two lines, and what does not fit stays on the host."""

import json

import jax
import numpy as np
import pytest
import yaml

from experiments import machine
from experiments.cli.messages import explain
from experiments.commands import summary
from experiments.errors import UserError, quantity
from experiments.search.configs import check_trial
from experiments.training import runtime
from experiments.training.devices import batch_size, memory
from experiments.training.saving import trials as saving
from experiments.training.setup import Setups
from experiments.training.stack import Stack
from experiments.training.step import Compiled
from experiments.viz.summary import summarize
from support import TINY, alone, close, composed, history_of, saved_of, trial_of

FREE = 2 * 10**6  # bytes


OF_XLA = [
    ("RESOURCE_EXHAUSTED: Out of memory allocating 8192 bytes.", "8.19 kB"),
    ("INTERNAL: dispatching: Out of memory allocating 1024000000 bytes.", "1.02 GB"),
    ("RESOURCE_EXHAUSTED: Failed to allocate request for 9.54GiB (10243014656B)", "10.2 GB"),
]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        *((jax.errors.JaxRuntimeError(e), f"the device has no {n} free") for e, n in OF_XLA),
        (MemoryError("Unable to allocate 72.0 GiB"), "this machine has no 77.3 GB free"),
        (MemoryError(), "this machine has no more free"),
    ],
)
def test_what_libraries_say_of_memory_is_two_lines(error, said):
    """At compiling, in a step, in an evaluation, or as data go to the device: the same error."""
    first, second = (explain(error, []) or "").splitlines()
    assert first == f"error: out of memory: {said}"
    assert "data.batch_size" in second
    assert "trainer.remat=true" in second
    assert explain(jax.errors.JaxRuntimeError("INTERNAL: another fault"), []) is None


def test_what_the_shell_allows_counts(monkeypatch):
    assert machine.free_memory() > 2**20
    monkeypatch.setattr(machine.resource, "getrlimit", lambda kind: (2**20, 2**20))
    assert machine.free_memory() == 0


def test_a_model_that_does_not_fit_is_refused_before_it_is_allocated(run_cli, monkeypatch):
    monkeypatch.setattr(runtime, "free_memory", lambda devices: FREE)
    monkeypatch.setattr(Compiled, "begin", None)  # nothing is
    code, error = run_cli(*TINY, "model.hidden=[300,300]")
    assert code == 2
    assert "out of memory: the state and the best weights of the model take 2.26 MB" in error
    assert "2.00 MB of this machine are free" in error


def test_a_step_that_does_not_fit_is_refused_before_it_is_taken(run_cli, monkeypatch):
    monkeypatch.setattr(runtime, "free_memory", lambda devices: FREE)
    monkeypatch.setattr(memory, "beside_arguments", lambda program: FREE + 1)
    code, error = run_cli(*TINY)
    assert code == 2
    assert "out of memory: a step takes 2.00 MB, and 2.00 MB of this machine are free" in error
    assert "smaller data.batch_size" in error


@pytest.mark.parametrize(
    ("batch", "advised"), [(4, "a smaller model, optim=sgd"), (1024, "a smaller data.batch_size")]
)
def test_what_takes_the_memory_is_what_is_advised_about(run_cli, monkeypatch, batch, advised):
    """A smaller batch is no help where next to all are weights and their gradients."""

    def begin(self, found):
        raise jax.errors.JaxRuntimeError(OF_XLA[1][0])

    monkeypatch.setattr(Stack, "begin", begin)
    sizes = ["model.hidden=[256]", "data.limit=null", f"data.batch_size={batch}"]
    code, error = run_cli(*TINY, *sizes)
    assert code == 2
    first, second = error.splitlines()[-2:]
    assert first == "error: out of memory: the device has no 1.02 GB free"
    assert second.startswith(f"less is taken by {advised}")


@pytest.mark.parametrize(
    "overrides", [["model.hidden=[512,512]", "optim.ema_decay=0.9"], ["model=vae"]]
)
def test_a_summary_counts_as_a_run_does(overrides, capsys, monkeypatch):
    """It says beforehand what is held, about what a step takes, and that there is too little."""
    config = composed(*overrides)
    setup = Setups().of(config)
    compiled = setup.compiled(setup.layout(1))
    compiled.prepare()
    states, weights = compiled.states, setup.experiment.weights(compiled.states)
    summary.main(config, None, None)
    held = quantity(memory.bytes_per_device((states, weights)), "B")
    said = capsys.readouterr().out
    assert f"a device holds {held} of states and best weights" in said
    counted = summary.Memory.of(summarize(config), setup.layout(1))
    taken = memory.beside_arguments(compiled.train)
    assert 0.9 * taken < counted.beside < 1.5 * taken  # XLA computes some things again
    monkeypatch.setattr(runtime, "free_memory", lambda devices: counted.taken - 1)
    summary.main(config, None, None)
    assert "of this machine are free: too little\nless is taken by" in capsys.readouterr().out


@pytest.mark.slow
def test_the_batch_size_that_fits_is_found_and_kept(run_cli, monkeypatch, tmp_path):
    """A run goes on with it, whatever fits then."""
    monkeypatch.setattr(runtime, "free_memory", lambda devices: FREE)
    short = ["logger=none", "trainer.figures=false", "model.hidden=[64]", "trainer.epochs=1"]
    assert run_cli(*short, "data.batch_size=auto")[0] == 0
    kept = yaml.safe_load((tmp_path / "run/.hydra/config.yaml").read_text())
    size = kept["data"]["batch_size"]
    assert size in (512, 1024)
    monkeypatch.setattr(batch_size, "find_batch_size", None)
    assert run_cli(f"resume={tmp_path / 'run'}", "trainer.epochs=2")[0] == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["step"] == 2 * (1293 // size)


def test_the_largest_batch_is_found_in_few_tries():
    tried = []

    def needed(size):
        tried.append(size)
        return 1000 + 10 * size

    assert batch_size.largest(needed, 12_000, 2**20) == 1024
    assert len(tried) < 6
    assert batch_size.largest(needed, 12_000, 512) == 512
    assert batch_size.largest(needed, 1_050, 2**20) == 4
    assert batch_size.largest(needed, 1_000, 2**20) == 0


def test_a_batch_size_that_is_to_be_found_is_refused_elsewhere(run_cli):
    with pytest.raises(UserError, match="=auto: a search compares trials of one size"):
        check_trial(composed("data.batch_size=auto"))
    code, error = run_cli("mode=gradcheck", "data.batch_size=auto")
    assert (code, "data.batch_size=auto is found by mode=train" in error) == (2, True)


def test_data_that_do_not_fit_are_sent_batch_by_batch(trial, monkeypatch, tmp_path):
    """The same training and evaluation; what is saved meanwhile is fetched, not copied there."""
    there = trial(1e-2, "there")
    alone(there)
    monkeypatch.setattr(memory, "is_apart", lambda: True)
    monkeypatch.setattr(memory, "RESIDENT", 0.05)
    monkeypatch.setattr(runtime, "free_memory", lambda devices: FREE // 2)
    monkeypatch.setattr(saving, "is_apart", lambda: True)
    monkeypatch.setattr(saving, "copied", None)
    config = there.config | {"name": "sent"}
    config["trainer"] = config["trainer"] | {"checkpoint_every": 0.0}
    sent = trial_of(config, tmp_path / "sent")
    assert sent.setup.streamed
    alone(sent)
    close(saved_of(sent), saved_of(there), rtol=1e-5, atol=1e-7)
    for one, other in zip(history_of(sent), history_of(there), strict=True):
        assert one["step"] == other["step"]
        assert one.get("val/loss", 0) == pytest.approx(other.get("val/loss", 0), rel=1e-5)
    assert not memory.may_stay({"image": np.zeros(60_000, np.uint8)})
    assert memory.may_stay({"image": np.zeros(40_000, np.uint8)})
