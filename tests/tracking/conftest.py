import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from experiments.tracking import wandb
from experiments.tracking.tracker import RunInfo
from wandb_server.server import Server, serve


@pytest.fixture
def run_info(tmp_path: Path) -> Callable[..., RunInfo]:
    """Makes a `RunInfo` of 40 steps in 4 epochs; keywords replace its fields."""
    directory = tmp_path / "run"
    directory.mkdir()

    def make(**changes) -> RunInfo:
        fields = {
            "directory": directory,
            "name": "mlp_digits_ab12cd",
            "config": {"optim": {"learning_rate": 1e-3}, "seed": 0},
            "total_steps": 40,
            "steps_per_epoch": 10,
            "batch_size": 32,
            "parameters": 2410,
        }
        return RunInfo(**fields | changes)

    return make


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The W&B client, without this machine's account, and with its processes ended afterwards."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "client"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(wandb, "_refused", -math.inf)  # by the server of another test
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.fixture
def server(client: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serve() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server
        if "wandb" in sys.modules:
            sys.modules["wandb"].teardown()
    assert not server.unknown
