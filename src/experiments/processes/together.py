"""Which processes train one model together, as their environment says, and which of them this is.

They are named by the first of these that there is:

    JAX_NUM_PROCESSES, JAX_PROCESS_ID, JAX_COORDINATOR_ADDRESS   by hand; a number of 1: alone
    OMPI_COMM_WORLD_SIZE, OMPI_COMM_WORLD_RANK                   by Open MPI's `mpirun`
    SLURM_STEP_NUM_TASKS, SLURM_PROCID                           by Slurm's `srun`
    TPU_WORKER_HOSTNAMES, or the metadata of the machine         on a pod of TPUs

Of Slurm the step counts, not the job: the script of a job, a worker of an array and `srun -n 1` are
alone. Workers of searches never join, whatever started them.
"""

import os
import re
import socket
import zlib
from dataclasses import dataclass

from experiments.errors import UserError
from experiments.processes import gpus

COORDINATOR, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
SIZE, RANK = "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"
TASKS, TASK = "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"
FIRST_PORT, PORTS = 61440, 4096  # above those that systems hand out by themselves


@dataclass(frozen=True)
class Group:
    """The processes that train one model together.

    Args:
      launcher: what started them, as its users name it.
      count, index: how many there are, and which of them this is; None where JAX finds that out.
      address: host and port of the first one; None where JAX finds it out.
      detection: the way in which it does, by JAX's name.
      devices: of the GPUs that this process sees, those that it computes on; None: all.
    """

    launcher: str
    count: int | None
    index: int | None
    address: str | None = None
    detection: str = "deactivate"
    devices: list[int] | None = None

    def __str__(self) -> str:
        """This process in words, such as `process 0 of 2 (srun)`."""
        which = "a process" if self.index is None else f"process {self.index} of {self.count}"
        return f"{which} ({self.launcher})"


def group() -> Group | None:
    """Return the processes that train together with this one, None if it is alone.

    Raises:
        UserError: the environment contradicts itself.
    """
    if COUNT in os.environ:
        return None if os.environ[COUNT] == "1" else _by_hand()
    if os.environ.get(SIZE, "1") != "1":
        return _of_open_mpi()
    if os.environ.get(TASKS, "1") != "1" and TASK in os.environ:
        return _of_slurm()
    return _of_tpus()


def check_alone(what: str) -> None:
    """Raise `UserError` if this is one of several processes, where `what` is for one."""
    if (found := group()) is not None and found.detection != "gcetpu":  # where one may be all
        raise UserError(
            f"{what} is for one process, and this is {found}; "
            f"start it once, or each of them alone by {COUNT}=1"
        )


def _by_hand() -> Group:
    given = {name: os.environ[name] for name in (COORDINATOR, COUNT, INDEX) if name in os.environ}
    count, index = given[COUNT], given.get(INDEX, "")
    numbers = count.isdigit() and index.isdigit() and int(index) < int(count)
    if not re.fullmatch(r".+:\d+", given.get(COORDINATOR, "")) or not numbers:
        said = " ".join(f"{name}={value}" for name, value in given.items())
        raise UserError(f"{said}: need {COORDINATOR}=host:port, {COUNT} and {INDEX} from 0")
    return Group(COUNT, int(count), int(index), given[COORDINATOR])


def _of_open_mpi() -> Group:
    address = os.environ.get(COORDINATOR)
    if address is None and "OMPI_MCA_orte_hnp_uri" not in os.environ:  # of Open MPI before 5
        raise UserError(
            f"this mpirun does not say where the first of its {os.environ[SIZE]} processes is: "
            f"mpirun -x {COORDINATOR}=host:port ..."
        )
    local = (int(os.environ[f"OMPI_COMM_WORLD_LOCAL_{name}"]) for name in ("RANK", "SIZE"))
    detection = "ompi" if address is None else "deactivate"
    count, index = int(os.environ[SIZE]), int(os.environ[RANK])
    return Group("mpirun", count, index, address, detection, gpus.part(*local))


def _of_slurm() -> Group:
    count, index = int(os.environ[TASKS]), int(os.environ[TASK])
    # each node's number of tasks, as in 4(x2),1
    nodes = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ["SLURM_STEP_TASKS_PER_NODE"])
    tasks = [int(number) for number, times in nodes for _ in range(int(times or 1))]
    here, bound = tasks[int(os.environ["SLURM_NODEID"])], gpus.bound_by_slurm()
    devices = None if bound else gpus.part(int(os.environ["SLURM_LOCALID"]), here)
    address = os.environ.get(COORDINATOR) or _first_node()
    return Group("srun", count, index, address, devices=devices)


def _first_node() -> str:
    """Return an address on the first node of the Slurm step, which other steps do not have."""
    nodes = re.match(r"(?:[^,\[]|\[[^\]]*\])*", os.environ["SLURM_STEP_NODELIST"])
    assert nodes is not None
    host = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodes.group())  # of a[03-05]b[1,3]: a03b1
    try:
        socket.getaddrinfo(host, None)
    except OSError:  # a name of Slurm's alone; the node of the job's script is mostly the first one
        host = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", host)
    step = f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_STEP_ID', 0)}"
    return f"{host}:{FIRST_PORT + zlib.crc32(step.encode()) % PORTS}"


def _of_tpus() -> Group | None:
    # JAX says so as it is imported where there are TPUs and it has their library
    platforms = os.environ.get("JAX_PLATFORMS") or "tpu"
    if os.environ.get("TPU_ML_PLATFORM") != "JAX" or "tpu" not in platforms.split(","):
        return None
    names = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    if names is None:  # of Google's Compute Engine, whose metadata JAX asks, unless told not to
        asked = "TPU_SKIP_MDS_QUERY" not in os.environ
        return Group("TPU", None, None, detection="gcetpu") if asked else None
    several = "," in names or os.environ.get("MEGASCALE_NUM_SLICES", "1") != "1"
    return Group("TPU", None, None, detection="gketpu") if several else None
