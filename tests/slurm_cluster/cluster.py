"""A real Slurm of two nodes on one machine, for tests and by hand.

    python tests/slurm_cluster/cluster.py [folder]      # until Ctrl-C; says what to export

Needs root. Debian's packages are installed if they are missing. The daemons are children of this
process and end with it, even if it is killed; jobs are cancelled first, unless it is killed. No
other process is ever signalled.
"""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "srun", "munged")
TEMPLATE = Path(__file__).with_name("slurm.conf")
GRACE = 20  # seconds that a preempted job is given
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


class UnavailableError(Exception):
    """Slurm cannot run here; the message says why."""


class Cluster:
    """While entered, the cluster runs, its files in a folder of its own.

    `environment` is that of a user of the cluster. Raises `UnavailableError`.
    """

    def __init__(self, base: Path | None = None):
        self._temporary = base is None
        # short, because the address of a Unix socket is
        self.base = base or Path(tempfile.mkdtemp(prefix="slurm"))
        self.environment = {**os.environ, "SLURM_CONF": str(self.base / "slurm.conf")}
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> "Cluster":
        try:
            install()
            self._configure()
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def command(self, *arguments: str, timeout: float = 30) -> str:
        """Return the output of a command of the cluster's user."""
        done = subprocess.run(
            arguments, env=self.environment, capture_output=True, text=True, timeout=timeout
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def stop(self) -> None:
        """Cancels all jobs, ends the daemons and removes what a temporary cluster has left."""
        if len(self._daemons) > 1:
            self._end_jobs()
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        self._end_what_is_left()
        if self._temporary:
            shutil.rmtree(self.base, ignore_errors=True)

    def _configure(self) -> None:
        self.base.mkdir(parents=True, exist_ok=True)
        self.base.chmod(0o755)
        (self.base / "state").mkdir(mode=0o700, exist_ok=True)
        for node in ("node1", "node2"):
            (self.base / f"spool.{node}").mkdir(exist_ok=True)
        key = self.base / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        host = socket.gethostname().partition(".")[0]
        try:
            address = socket.gethostbyname(host)
        except OSError as error:
            raise UnavailableError(f"this machine's name has no address: {host}") from error
        ports = free_ports(3, address)
        text = TEMPLATE.read_text().format(
            base=self.base,
            host=host,
            address=address,
            grace=GRACE,
            controller_port=ports[0],
            node1_port=ports[1],
            node2_port=ports[2],
        )
        (self.base / "slurm.conf").write_text(text)

    def _start(self) -> None:
        base = self.base
        munged = ["munged", "--foreground", "--force", "--num-threads=2"]
        munged += [f"--socket={base}/munge.socket", f"--key-file={base}/munge.key"]
        munged += [f"--pid-file={base}/munge.pid", f"--log-file={base}/munge.log"]
        self._daemon([*munged, f"--seed-file={base}/munge.seed"])
        self._wait(lambda: (base / "munge.socket").exists(), "munge")
        self._daemon(["slurmctld", "-D"])
        for node in ("node1", "node2"):
            self._daemon(["slurmd", "-D", "-N", node])
        self._wait(self._ready, "slurmctld and slurmd")

    def _daemon(self, command: list[str]) -> None:
        output = (self.base / f"{command[0]}.out").open("a")
        with output:
            self._daemons.append(
                subprocess.Popen(
                    command,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C is for this process alone
                    preexec_fn=end_with_parent,
                )
            )

    def _ready(self) -> bool:
        """Return whether a step runs on both nodes."""
        command = ["srun", "-Q", "-N2", "-n2", "--immediate=2", "true"]
        try:
            self.command(*command, timeout=5)
        except (RuntimeError, subprocess.TimeoutExpired):
            return False
        return True

    def _wait(self, ready, what: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            ended = [d for d in self._daemons if d.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = sorted(self.base.glob("*.log")) + sorted(self.base.glob("*.out"))
                last = [line for log in logs for line in log.read_text().splitlines()[-2:]]
                raise UnavailableError(f"{what} did not come up: " + " | ".join(last))
            time.sleep(0.1)

    def _end_jobs(self) -> None:
        try:
            for job in set(self.command("squeue", "-h", "-o", "%A").split()):
                self.command("scancel", "--signal=KILL", job)
                self.command("scancel", job)
            deadline = time.monotonic() + 20
            while self.command("squeue", "-h") and time.monotonic() < deadline:
                time.sleep(0.2)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"jobs could not be cancelled: {error}", file=sys.stderr)

    def _end_what_is_left(self) -> None:
        """End jobs that no daemon ended, such as one whose step hung as it was preempted."""
        own = b"SLURM_CONF=" + os.fsencode(self.environment["SLURM_CONF"])
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if own in (process / "environ").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGKILL)
            except OSError:  # it has ended, or is another user's
                continue


def install() -> None:
    """Makes sure that Slurm's programs are here."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise UnavailableError("a Slurm of one's own needs Linux and root")
    if all(shutil.which(program) for program in PROGRAMS):
        return
    if shutil.which("apt-get") is None:
        raise UnavailableError("Slurm is not installed and there is no apt-get to install it with")
    patience = ["-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10"]
    patience += ["-o", "DPkg::Lock::Timeout=120"]
    wanted = ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
    for command in (["update", "-qq"], wanted):
        done = subprocess.run(
            ["apt-get", *patience, *command],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = (done.stderr.strip() or "no reason given").splitlines()[-1]
            raise UnavailableError(f"apt-get could not install Slurm: {said}")


def free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    """Ports of an address of this machine that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind((address, 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def end_with_parent() -> None:
    """Has the kernel end this child when its parent is gone."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> int:
    base = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Cluster(base) as cluster:
            print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}", flush=True)
            signal.pause()
    except UnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
