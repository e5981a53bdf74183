"""The GPUs that processes of this machine may use, and how these share them and their memory.

JAX takes three quarters of a GPU's memory for a process as it starts. So workers and agents that
share a GPU take a stated part each, and a process that finds memory taken takes its own bit by bit.
"""

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

# today's and the former name of the share of a GPU's memory that JAX takes for a process
MEMORY = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"
CHOSEN = (*MEMORY, PREALLOCATE, "XLA_PYTHON_CLIENT_ALLOCATOR")
NVIDIA, AMD = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"  # HIP counts what ROCr shows
ROCR = "ROCR_VISIBLE_DEVICES"
NODES_OF_AMD = Path("/sys/class/kfd/kfd/topology/nodes")
DRIVERS = Path("/sys/class/drm")
TAKEN = 0.05  # of a GPU's memory: more than what a display or a driver holds
SECONDS = 30.0  # that nvidia-smi may take


def environment(slot: int, count: int, each: int = 1) -> dict[str, str]:
    """Return the environment of one of `count` workers, with its GPUs, `each` of them or a part.

    Workers that share GPUs divide the part of their memory that JAX may take.
    """
    own = dict(os.environ)
    variable, gpus = _visible()
    if not gpus:
        return own
    places = len(gpus) // each
    first = slot % places * each
    own[variable] = ",".join(gpus[first : first + each])
    sharing = -(-count // places)
    if sharing > 1:
        given = [own.pop(name, None) for name in MEMORY]  # jaxlib refuses both at once
        share = float(next(filter(None, given), 0.9)) / sharing
        own[MEMORY[0]] = f"{share:.3f}"
    return own


def visible() -> list[str]:
    """Return the GPUs that this process may use."""
    return _visible()[1]


def hidden() -> bool:
    """Return whether the environment says that no GPU is to be used."""
    return any(name in os.environ and not _listed(name) for name in (NVIDIA, AMD, ROCR))


def part(index: int, count: int) -> list[int] | None:
    """Return the numbers of the GPUs for one of `count` processes that all see the same ones.

    Where there are fewer GPUs than processes each sees its own already.

    Returns:
        None where JAX is told otherwise, or there is none.
    """
    if "JAX_LOCAL_DEVICE_IDS" in os.environ or not (there := len(visible())):
        return None
    each = there // count
    return list(range(index * each, (index + 1) * each)) if each else list(range(there))


def bound_by_slurm() -> bool:
    """Return whether Slurm shows each task of a step GPUs of its own."""
    bind = os.environ.get("SLURM_GPU_BIND", "none")
    each = ("SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU")
    return not bind.startswith("none") or any(name in os.environ for name in each)


def take_what_is_left(devices: Sequence[int] | None = None) -> str | None:
    """Have JAX take memory as it needs it if other processes hold memory of a GPU that it may use.

    Comes before any use of a device. Where the environment says what to take, that is what is done.

    Args:
      devices: the numbers of those that it uses, of the visible ones; None: all.

    Returns:
        What was found, in words; None if nothing was.
    """
    if any(name in os.environ for name in CHOSEN) or not (there := visible()):
        return None
    if devices is not None:
        there = [there[number] for number in devices if number < len(there)]  # else JAX says so
    fields = "index,uuid,memory.used,memory.total"
    said = _said("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    rows = [[field.strip() for field in line.split(",")] for line in said.split("\n") if line]
    if not rows:
        rows = list(_memory_of_amd())
        shown = dict(enumerate(_listed(ROCR))) if ROCR in os.environ else {}
        there = [shown.get(int(one), one) if one.isdigit() else one for one in there]
    for index, uuid, used, total in (row for row in rows if len(row) == 4):
        mine = any(gpu == index or uuid.startswith(gpu) for gpu in there)
        if mine and used.isdigit() and total.isdigit() and int(used) > TAKEN * int(total):
            os.environ[PREALLOCATE] = "false"
            return f"GPU {index} has {int(used):,} of {int(total):,} MiB taken"
    return None


def _visible() -> tuple[str, list[str]]:
    """Return the variable that says which GPUs a process may use, and these."""
    platforms = set(filter(None, os.environ.get("JAX_PLATFORMS", "").split(",")))
    if platforms and not platforms & {"cuda", "rocm", "gpu"}:
        return NVIDIA, []
    for variable in (NVIDIA, AMD):
        if variable in os.environ:
            return variable, _listed(variable)
    lines = _said("nvidia-smi", "-L").splitlines()
    if found := [str(i) for i, line in enumerate(x for x in lines if x.startswith("GPU"))]:
        return NVIDIA, found
    count = len(_listed(ROCR)) if ROCR in os.environ else len(_described_of_amd())
    return AMD, [str(i) for i in range(count)]


def _listed(variable: str) -> list[str]:
    """Return the GPUs of a variable; words such as -1 or Slurm's NoDevFiles are none."""
    return [gpu for gpu in os.environ[variable].split(",") if re.match(r"\d|GPU-|MIG-", gpu)]


def _described_of_amd() -> list[str]:
    """Return what Linux's driver says of AMD's GPUs, which are its nodes that have SIMDs."""
    nodes = sorted(NODES_OF_AMD.glob("*/properties"), key=lambda path: int(path.parent.name))
    described = (path.read_text() for path in nodes)
    return [text for text in described if re.search(r"^simd_count [1-9]", text, re.MULTILINE)]


def _memory_of_amd() -> Iterator[list[str]]:
    """Yield what `nvidia-smi` says of NVIDIA's: number, identifier, MiB used, MiB in all."""
    for index, text in enumerate(_described_of_amd()):
        minor = re.search(r"^drm_render_minor (\d+)", text, re.MULTILINE)
        device = DRIVERS / f"renderD{minor[1] if minor else ''}" / "device"
        files = [device / f"mem_info_vram_{what}" for what in ("used", "total")]
        if all(path.is_file() for path in files):
            yield [f"{index}", "", *(f"{int(path.read_text()) // 2**20}" for path in files)]


def _said(*command: str) -> str:
    """Return the output of a command; nothing where there is no such program."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
