"""Who trains with whom is read from the environment of each launcher, and nothing else joins."""

import os
import re

import pytest

from experiments.cli.startup import workers_ahead
from experiments.cli.sweep import sweep
from experiments.errors import UserError
from experiments.processes import gpus, together
from experiments.processes.together import COORDINATOR, COUNT, INDEX, Group
from support import ROOT

# as they are in the second task on the second node of `srun -N 2 -n 4`
SRUN = {
    "SLURM_JOB_ID": "41",
    "SLURM_STEP_ID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "localhost,other[1-7]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
MPIRUN = {
    "OMPI_MCA_orte_hnp_uri": "101187584.0;tcp://192.0.2.2:42347",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
TPU = {"TPU_ML_PLATFORM": "JAX"}  # as JAX sets where there are TPUs


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """Set the environment of a process; without anything of the machine that the tests run on."""
    for name in os.environ:
        if re.match(r"JAX_|SLURM_|OMPI_|TPU_|MEGASCALE_|CUDA_|HIP_|ROCR_", name):
            monkeypatch.delenv(name)
    monkeypatch.setattr(gpus, "NODES_OF_AMD", ROOT / "none")

    def start(environment: dict[str, str]) -> Group | None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return together.group()

    return start


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {COUNT: "1"},
        SRUN | {COUNT: "1"},
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},  # of `srun -n 1` in a job of four tasks
        {n: v for n, v in SRUN.items() if "STEP" not in n},  # of the script of a job
        {n: v for n, v in SRUN.items() if n != "SLURM_PROCID"},  # of the shell of `salloc`
        MPIRUN | {"OMPI_COMM_WORLD_SIZE": "1"},
        TPU | {"TPU_WORKER_HOSTNAMES": "host0"},
        TPU | {"TPU_SKIP_MDS_QUERY": "1"},
        TPU | {"TPU_WORKER_HOSTNAMES": "host0,host1", "JAX_PLATFORMS": "cpu"},
        {"TPU_WORKER_HOSTNAMES": "host0,host1"},  # where there is no library for them
    ],
)
def test_what_is_alone_joins_nothing(started, environment):
    assert started(environment) is None


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({COORDINATOR: "a:1", COUNT: "4", INDEX: "3"}, Group(COUNT, 4, 3, "a:1")),
        (MPIRUN, Group("mpirun", 4, 3, detection="ompi")),
        (MPIRUN | SRUN, Group("mpirun", 4, 3, detection="ompi")),  # which Slurm has started
        (SRUN | {COORDINATOR: "a:1"}, Group("srun", 4, 3, "a:1")),
        (TPU, Group("TPU", None, None, detection="gcetpu")),
        (
            TPU | {"TPU_WORKER_HOSTNAMES": "host0,host1"},
            Group("TPU", None, None, detection="gketpu"),
        ),
    ],
)
def test_each_launcher_says_who_trains_together(started, environment, found):
    assert started(environment) == found


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("localhost", "localhost"),
        ("local[host,other]", "localhost"),
        ("nowhere[07-9]x", "192.0.2.9"),
    ],
)
def test_steps_of_slurm_meet_on_their_first_node_each_at_its_own_port(started, nodes, host):
    """A name that only Slurm knows stands for the node that the step was started on."""
    here = SRUN | {"SLURM_STEP_NODELIST": nodes, "SLURM_LAUNCH_NODE_IPADDR": "192.0.2.9"}
    addresses = [started(here | {"SLURM_STEP_ID": step}).address for step in "01"]
    assert {address.rpartition(":")[0] for address in addresses} == {host}
    assert len(set(addresses)) == 2


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [2, 3]),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "2"}, [0]),  # it sees its own alone
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"}, None),  # all that it sees
        ({"CUDA_VISIBLE_DEVICES": "0,1", "JAX_LOCAL_DEVICE_IDS": "0"}, None),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, None),
        ({"ROCR_VISIBLE_DEVICES": "4,5"}, [1]),
    ],
)
def test_tasks_of_a_node_divide_its_gpus(started, environment, devices):
    assert started(SRUN | environment).devices == devices


@pytest.mark.parametrize(
    "given",
    [
        {COUNT: "2"},
        {COUNT: "2", INDEX: "2", COORDINATOR: "a:1"},
        {COUNT: "2", INDEX: "1", COORDINATOR: "a"},
        {COUNT: "two", INDEX: "0"},
    ],
)
def test_an_environment_that_says_half_is_named(started, given):
    with pytest.raises(UserError, match=f"{COUNT}={given[COUNT]}"):
        started(given)


def test_an_mpirun_that_does_not_say_where_is_named(started):
    del (given := dict(MPIRUN))["OMPI_MCA_orte_hnp_uri"]
    with pytest.raises(UserError, match=f"mpirun -x {COORDINATOR}="):
        started(given)
    assert started(given | {COORDINATOR: "a:1"}) == Group("mpirun", 4, 3, "a:1")


def test_one_machine_with_tpus_may_do_anything(started):
    """Only JAX can say whether it is one of several."""
    started(TPU)
    together.check_alone("mode=evaluate")
    started({"TPU_WORKER_HOSTNAMES": "host0,host1"})
    with pytest.raises(UserError, match=r"this is a process \(TPU\)"):
        together.check_alone("mode=evaluate")


def test_a_search_is_begun_by_one_process(started):
    started(SRUN)
    said = r"a search is for one process, and this is process 3 of 4 \(srun\)"
    with pytest.raises(UserError, match=said):
        sweep(["sweeps/lenet5_lr_wd.yaml"], ROOT / "conf")
    with pytest.raises(UserError, match=said), workers_ahead(["-m", "seed=1,2"], ROOT / "conf"):
        pass
    with pytest.raises(UserError, match="nowhere does not exist"):  # it would work alone
        sweep(["worker=nowhere"], ROOT / "conf")
