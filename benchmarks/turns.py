"""Processes that stay, measure when they are asked to, and sleep in between.

Two frameworks in one process disturb each other with their threads. So each of the two that are
compared lives in a process of its own; only the one whose turn it is computes, the other one waits
for its next line of input.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class Worker:
    """A process that runs `python -m MODULE ARGUMENTS`, which calls `serve`.

    `environment` is what it has beside the variables of this process.
    """

    def __init__(self, module: str, *arguments: str, environment: Mapping[str, str] | None = None):
        self.command = f"python -m {module} {' '.join(arguments)}".strip()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )
        self.facts: dict[str, Any] = self._read()
        self.cpu: list[float] = []

    def seconds_a_step(self, steps: int) -> float:
        """Has it take so many steps; `cpu` keeps the seconds that its threads computed for one."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        seconds, computed = self._read()
        self.cpu.append(computed / steps)
        return seconds / steps

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.command}: ended with exit code {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def serve(run: Callable[[int], None], facts: dict[str, Any]) -> None:
    """Prints `facts` once `run(1)` has warmed up; then for each line n what `run(n)` took.

    That is the seconds that passed, and those that all threads together were computing.
    """
    run(1)
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        start, computed = time.perf_counter(), time.process_time()
        run(int(line))
        taken = time.perf_counter() - start, time.process_time() - computed
        print(json.dumps(taken), flush=True)
