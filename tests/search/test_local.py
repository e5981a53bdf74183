"""Workers of this machine before there is a study: what their launcher asks of them."""

import os
import pickle
import signal
import subprocess
import sys

import pytest

from experiments.errors import UserError
from experiments.search import local
from experiments.search.check import Case, cases, examine
from experiments.search.configs import Configs
from experiments.search.local import Crew
from experiments.search.space import read_space
from support import ROOT


def space_of(values, *overrides):
    parameters = {"optim.learning_rate": {"values": values}}
    return read_space(parameters, Configs(ROOT / "conf", overrides))


def test_a_worker_says_what_takes_jax_to_say(capfd):
    good, bad = cases(space_of([0.1, 1])), cases(space_of([0.1, -1, "fast"]))
    broken = [Case(case.config, {}) for case in cases(space_of([0.1], "model.hidden=[0]"))]
    with Crew(1, ROOT / "sweep.py") as crew:
        assert crew.ask(examine, good).monitor == ("accuracy", "max")
        (wrong,) = crew.ask(examine, bad).wrong
        assert wrong[0] == "optim.learning_rate"
        assert "-1" in wrong[1]
        with pytest.raises(UserError, match=r"model\.hidden"):
            crew.ask(examine, broken)
        with pytest.raises(IndexError):  # no word for a user: the launcher meets it itself
            crew.ask(examine, [])
    assert capfd.readouterr() == ("", "")


def test_a_launcher_whose_worker_was_killed_answers_itself():
    with Crew(1, ROOT / "sweep.py") as crew:
        os.kill(crew.running[0].popen.pid, signal.SIGKILL)
        assert crew.ask(examine, cases(space_of([0.1]))).monitor == ("accuracy", "max")
        assert crew.running[0].popen.poll() is None  # another one


def test_neither_side_imports_what_the_other_has(tmp_path):
    (tmp_path / "cases").write_bytes(pickle.dumps(cases(space_of([0.1]))))
    launcher = "import experiments.search.launch, experiments.search.planning"
    worker = f"""
import pathlib, pickle
import experiments.search.worker
from experiments.search.check import examine
examine(pickle.loads(pathlib.Path({str(tmp_path / "cases")!r}).read_bytes()))"""
    for side, others in ((launcher, {"jax", "flax"}), (worker, {"hydra", "omegaconf"})):
        program = f"{side}\nimport sys\nassert not {others} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", program], check=True)


def test_workers_share_a_gpu_by_the_name_that_jaxlib_reads(monkeypatch):
    """Of the old name and the new one together jaxlib makes an error."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    for name in local.MEMORY:
        monkeypatch.delenv(name, raising=False)
    assert local.environment(1, 2)["CUDA_VISIBLE_DEVICES"] == "5"
    assert not set(local.MEMORY) & local.environment(1, 2).keys()
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".8")
    shared = local.environment(2, 4)
    assert shared["CUDA_VISIBLE_DEVICES"] == "3"
    assert shared["XLA_CLIENT_MEM_FRACTION"] == "0.400"
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in shared
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.environment(0, 4)["XLA_PYTHON_CLIENT_MEM_FRACTION"] == ".8"
