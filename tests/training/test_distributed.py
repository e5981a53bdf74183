"""Processes that train together compute what one would, and stop and go on together."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.core.config import build
from experiments.errors import UserError
from experiments.processes.together import COORDINATOR, COUNT, INDEX
from experiments.training.run_folder import saved_steps
from experiments.training.runtime import data_mesh
from slurm_cluster.cluster import free_ports
from support import ROOT, composed

RUN = ["logger=none", "trainer.figures=false", "model.hidden=[16]", "model.dropout=0.2"]
DIVIDED = ["trainer.sharding=fsdp", "model.hidden=[256]"]  # whose weights are worth dividing
NUMBERS = ("train/loss", "grad_norm", "val/loss", "val/accuracy", "test/loss")


def start(count: int, *arguments: str, last: Sequence[str] = ()) -> list[subprocess.Popen]:
    """`run.py` in `count` processes that train one model; `last`: arguments of the last alone."""
    (port,) = free_ports(1)
    processes = []
    for index in range(count):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        if count > 1:
            environment |= {COORDINATOR: f"127.0.0.1:{port}", COUNT: str(count), INDEX: str(index)}
        own = last if index == count - 1 else ()
        command = [sys.executable, "run.py", *arguments, *own]
        pipe = subprocess.PIPE
        processes.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True
            )
        )
    return processes


def wait_for_checkpoint(folder: Path) -> None:
    deadline = time.monotonic() + 90
    while not saved_steps(folder) and time.monotonic() < deadline:
        time.sleep(0.1)


def end(processes: list[subprocess.Popen], code: int = 0) -> list[tuple[str, str]]:
    """Waits for all of them; what each printed and complained about."""
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [code] * len(processes), said
    return said


def numbers(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in ("step", *NUMBERS) if key in line} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        ["data.augment.crop_padding=1"],
        ["data.stream=true", "data.workers=0"],
        [*DIVIDED, "optim.ema_decay=0.9"],
    ],
    ids=["resident", "streamed", "divided"],
)
def test_two_processes_compute_what_one_does(run_cli, tmp_path, data_home, data):
    options = [*data_home, *RUN, *data, "trainer.epochs=2", "trainer.log_every=5"]
    options.append("trainer.checkpoints=false")
    together = start(2, *options, f"hydra.run.dir={tmp_path / 'two'}")
    assert run_cli(*options, folder=tmp_path / "one")[0] == 0
    first, second = end(together)
    one, two = numbers(tmp_path / "one"), numbers(tmp_path / "two")
    assert len(one) == len(two) > 8
    for mine, other in zip(one, two, strict=True):
        assert other == pytest.approx(mine, rel=1e-5)
    assert "epoch" in first[0]
    assert second == ("", "")  # one of them speaks, and no library of the others
    assert not list((tmp_path / "two").glob("process_*"))


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_one_alone_goes_on(tmp_path, data_home):
    folder = tmp_path / "run"
    options = [*data_home, *RUN, "trainer.log_every=20"]
    endless = ["trainer.epochs=100000", "trainer.checkpoint_every=0.5"]
    processes = start(2, *options, *endless, f"hydra.run.dir={folder}")
    wait_for_checkpoint(folder)
    processes[1].send_signal(signal.SIGTERM)
    end(processes, code=75)
    stopped = json.loads((folder / "summary.json").read_text())
    assert stopped["status"] == "interrupted"
    epochs = stopped["step"] // 20 + 2
    resume = [sys.executable, "run.py", f"resume={folder}", f"trainer.epochs={epochs}"]
    done = subprocess.run(resume, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    resumed = json.loads((folder / "summary.json").read_text())
    assert (resumed["status"], resumed["step"]) == ("finished", epochs * 20)
    steps = [line["step"] for line in numbers(folder)]
    assert steps == sorted(steps)


@pytest.mark.slow
def test_a_killed_process_ends_the_other_one_and_any_number_goes_on(tmp_path, data_home):
    """Of a state that is divided: each process saves its part of one checkpoint."""
    folder = tmp_path / "run"
    options = [*data_home, *RUN, *DIVIDED, "trainer.log_every=20", "trainer.checkpoint_every=0.5"]
    processes = start(2, *options, "trainer.epochs=100000", f"hydra.run.dir={folder}")
    wait_for_checkpoint(folder)
    processes[1].kill()
    killed = time.monotonic()
    ((_, said),) = end(processes[:1], code=1)
    assert time.monotonic() - killed < 5
    assert re.search(r"process 1 of 2 \(.*\) has ended, .* resume=.*run", said)
    assert "Traceback" not in said
    processes[1].communicate()
    for count in (4, 1):
        epochs = saved_steps(folder)[-1] // 20 + 2
        end(start(count, f"resume={folder}", f"trainer.epochs={epochs}"))
        resumed = json.loads((folder / "summary.json").read_text())
        assert (resumed["status"], resumed["step"]) == ("finished", epochs * 20)


@pytest.mark.slow
def test_a_callback_and_figures_see_the_whole_of_divided_weights(tmp_path, data_home):
    folder = tmp_path / "run"
    options = [*data_home, *DIVIDED, "logger=none", "callbacks=mistakes", "trainer.epochs=1"]
    first, second = end(start(2, *options, f"hydra.run.dir={folder}"))
    assert "dropped" not in first[1]
    assert second == ("", "")
    assert (folder / "mistakes.csv").is_file()
    assert (folder / "figures/confusion_matrix.png").is_file()


@pytest.mark.slow
def test_where_the_first_process_is_killed_one_line_says_so(tmp_path, data_home):
    folder = tmp_path / "run"
    options = [*data_home, *RUN, "data.batch_size=63", "trainer.epochs=100000"]
    processes = start(3, *options, "trainer.checkpoint_every=0.5", f"hydra.run.dir={folder}")
    wait_for_checkpoint(folder)
    processes[0].kill()
    second, third = end(processes[1:], code=1)
    said = f"process 0 of 3 has ended, and this training with it; it goes on by resume={folder}"
    assert (second, third) == (("", f"{said}\n"), ("", ""))
    processes[0].communicate()


@pytest.mark.slow
def test_what_is_wrong_is_said_by_one_and_ends_all(tmp_path, data_home):
    options = [*data_home, *RUN, "data.batch_size=63", f"hydra.run.dir={tmp_path / 'run'}"]
    said = [error for _, error in end(start(2, *options), code=2)]
    assert sum("nodes cannot share the batch of 63" in one for one in said) == 1


@pytest.mark.slow
def test_another_config_of_one_process_is_named(tmp_path, data_home):
    options = [*data_home, *RUN, f"hydra.run.dir={tmp_path / 'run'}"]
    slip = ["optim.learning_rate=0.1", "data.workers=1"]  # the second may differ
    said = [error for _, error in end(start(2, *options, last=slip), code=2)]
    line = "optim.learning_rate: 0.001 in the first process, 0.1 in process 1; start all"
    assert sum(line in one for one in said) == 1


@pytest.mark.slow
def test_the_parts_of_streamed_batches_are_the_batches(data_home):
    data = build(composed(*data_home, "data.stream=true", "data.workers=0")["data"])
    train = data.load().train
    size = 600  # two batches an epoch: the third one is of the next
    whole = train.iterate(size, 0, True)
    halves = [train.iterate(size, 0, True, range(i, i + size // 2)) for i in (0, size // 2)]
    for _ in range(3):
        batch, parts = next(whole), [next(half) for half in halves]
        for name, array in batch.items():
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), array)


def test_what_processes_cannot_share_is_named(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(UserError, match=r"3 nodes cannot share the batch of 64; .* multiple of 3"):
        data_mesh(None, 64)


JOIN = """
import sys
from pathlib import Path
from experiments.training.distributed import is_first, join
from experiments.processes import watch
with watch.until_it_ends():
    print(join(Path("folder", sys.argv[1])), is_first())
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["TPU", "mpirun"])
def test_jax_finds_the_first_process_where_the_environment_says_it(launcher):
    (port,) = free_ports(1)
    processes = []
    for index in "01":
        uri = {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp://127.0.0.1:1"}
        own = uri | {f"OMPI_COMM_WORLD_{n}RANK": index for n in ("", "LOCAL_")}
        own |= {f"OMPI_COMM_WORLD_{n}SIZE": "2" for n in ("", "LOCAL_")}
        if launcher == "TPU":  # two hosts of Kubernetes, which JAX is told to have TPUs
            own = {"JAX_FORCE_TPU_INIT": "1", "JAX_PLATFORMS": "tpu", "TPU_WORKER_ID": index}
            own["TPU_WORKER_HOSTNAMES"] = "localhost,localhost"
            # else it asks the metadata of the machine
            own |= {"MEGASCALE_COORDINATOR_ADDRESS": "localhost", "MEGASCALE_SLICE_ID": "0"}
            own["MEGASCALE_NUM_SLICES"] = "1"
        command, pipe = [sys.executable, "-c", JOIN, index], subprocess.PIPE
        own = os.environ | own | {"JAX_COORDINATOR_PORT": str(port)}
        processes.append(subprocess.Popen(command, env=own, stdout=pipe, stderr=pipe, text=True))
    said = [out.split() for out, _ in end(processes)]
    assert said == [["folder/0", "True"], ["folder/0", "False"]]


@pytest.mark.core
def test_this_jax_has_what_processes_tell_each_other():
    """It is no part of its public interface."""
    alone = jax._src.distributed.State()
    assert (alone.process_id, alone.num_processes) == (0, 1)
    assert (alone.client, alone.coordinator_address) == (None, None)
    client = jax._src.lib._jax.DistributedRuntimeClient
    assert callable(client.key_value_set)
    assert callable(client.blocking_key_value_get)


def test_nodes_without_a_cluster_are_named(run_cli):
    code, error = run_cli("nodes=2")
    assert code == 2
    assert "say cluster=slurm" in error
