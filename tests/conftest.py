"""Fixtures that every test shares: configs, prepared digits, a quiet and offline machine."""

import contextlib
import gc
import logging
import os
import sys
from pathlib import Path

import absl.logging
import jax
import omegaconf._utils
import pytest
import yaml
from hydra._internal.hydra import Hydra

from experiments.core import programs, trust
from experiments.search import local
from experiments.search.plan import Plan
from experiments.search.study import Study, create_study
from experiments.training.runtime import SHORT_OPTIONS, set_up_compiler
from support import LEARNING_RATE, ROOT, TINY, logging_restored, run_command

os.environ.setdefault("WANDB_MODE", "offline")
os.environ["WANDB_ERROR_REPORTING"] = "false"
# programs, those of processes that tests start too, are compiled as those of short runs are, and
# without LLVM's optimisation, which takes longer than tests gain by it
QUICK = SHORT_OPTIONS | {"xla_backend_optimization_level": 0}
FLAGS = [f"--{name}={value}".lower() for name, value in QUICK.items()]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
jax.config.update("jax_platforms", "cpu")
COVERED, programs.COVERED = programs.COVERED, ()  # tests change code that would be traced
gc.set_threshold(100_000, 20, 50)  # JAX allocates so much that collections took a tenth of the time
trust.allow([ROOT / "conf"], [])  # as every entry point does
# Hydra composes a config twice, at first for `hydra.mode` alone, which no test sets, and has each
# file parsed by Python: by the C library it is the same
Hydra.get_mode = lambda self, config_name, overrides: None
with pytest.MonkeyPatch.context() as patch:
    patch.setattr(yaml, "SafeLoader", yaml.CSafeLoader)
    LOADER = omegaconf._utils.get_yaml_loader()
omegaconf._utils.get_yaml_loader = lambda: LOADER
# absl closes the stream that it was imported under when Hydra sets up logging: pytest's own
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Programs that several tests compile are compiled once, in all processes that run tests.

    So are those of the processes that tests start.
    """
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(shared / "xla")
    set_up_compiler(None)


@pytest.fixture(scope="module", autouse=True)
def leftovers():
    """What a file's tests leave is not looked through by each collection of garbage after them."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def usual_logging():
    """Only warnings are logged, whatever a command of an earlier test has set up."""
    logging.root.setLevel(logging.WARNING)


@pytest.fixture
def own_cache(tmp_path):
    """A folder of compiled programs that no other test has left any in."""
    before = jax.config.values["jax_compilation_cache_dir"]
    set_up_compiler(str(tmp_path / "xla"))
    yield tmp_path / "xla"
    set_up_compiler(before)


@pytest.fixture
def kept_programs(tmp_path, monkeypatch) -> Path:
    """Programs are kept for later runs, as they are outside of tests: the folder, a new one."""
    monkeypatch.setattr(programs, "COVERED", COVERED)
    monkeypatch.setattr(programs, "FOLDER", tmp_path / "programs")
    return tmp_path / "programs"


@pytest.fixture(scope="session")
def data_home(tmp_path_factory) -> list[str]:
    """Overrides that keep prepared and decoded data in a folder of the test session."""
    folder = tmp_path_factory.mktemp("data")
    return [f"data.dir={folder}/prepared", f"data.cache_dir={folder}/cache"]


@pytest.fixture
def run_cli(capsys, tmp_path, data_home):
    """`run.py` in this process: (exit code, standard error) for a list of arguments."""

    def call(
        *arguments: str, folder: Path | None = None, folders: bool = True, dated: bool = False
    ) -> tuple[int, str]:
        """`folders`: the data have folders of their own to keep apart; `dated`: so has the run."""
        own = [] if any(a.startswith("data.dir=") for a in arguments) else data_home[:1]
        where = [] if dated else [f"hydra.run.dir={folder or tmp_path / 'run'}"]
        own += data_home[1:]
        code = run_command(*(own if folders else []), *where, *arguments)
        return code, capsys.readouterr().err

    with logging_restored():
        yield call


@pytest.fixture
def planned_here(monkeypatch):
    """Searches are planned in this process, which has imported JAX, and not by a worker of theirs.

    No worker is started ahead.
    """
    monkeypatch.setattr(local, "standing_by", lambda *_: contextlib.nullcontext())


@pytest.fixture
def make_study(tmp_path, data_home):
    """A new study of tiny trials; keyword arguments are fields of its plan."""

    def make(folder: Path | None = None, **fields) -> Study:
        overrides = [*TINY, *data_home, *fields.pop("overrides", [])]
        settings = {"parameters": LEARNING_RATE, "n_trials": 4, "heartbeat": 2.0, **fields}
        plan = Plan(
            name="tiny",
            overrides=overrides,
            **{"metric": ["val/accuracy"], "goal": ["maximize"], **settings},
        )
        return create_study(plan, folder or tmp_path / "study", ROOT / "conf")

    return make
