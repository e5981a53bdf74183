"""This project beside its peers, on the machine at hand.

    python -m benchmarks [--only lenet5_step,help] [--json FILE] [--pairs 7] [--compile] [--quick]

Ours and a peer are measured by turns; `ratio` is the median of peer over ours, above 1 where ours
is the faster one. Results are added to benchmarks/results/<machine>.json, each in the place of an
older one of its name and peer, and the .md beside it becomes a table of all. `--quick` runs
everything once with tiny sizes, to see that it runs.
"""

import argparse
import functools
import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import gpu, overhead, population, processes, startup, steps
from benchmarks.results import LeftOutError, Record, machine, record, surroundings
from benchmarks.table import HEAD, line, markdown
from benchmarks.turns import ROOT

Benchmark = Callable[[int, bool], list[Record]]  # of (pairs, quick)


def benchmarks(compiled: bool) -> dict[str, Benchmark]:
    """Return all benchmarks by name; `compiled` steps are also compared with torch.compile."""
    found: dict[str, Benchmark] = {
        f"{name}_step": functools.partial(steps.measure, name, compiled=compiled)
        for name in steps.CASES
    }
    return found | {
        "help": processes.help_text,
        "first_step": processes.first_step,
        "overhead": overhead.overhead,
        "memory": overhead.memory,
        "tracking": processes.tracking,
        "lightning_epoch": processes.lightning_epoch,
        **{name: functools.partial(gpu.measure, name) for name in gpu.CASES},
        "gpu_input": gpu.gpu_input,
        **{f"startup_{model}": functools.partial(start, model) for model in startup.MODELS},
        **{f"population_{name}": functools.partial(sweep, name) for name in population.CASES},
    }


def sweep(name: str, pairs: int, quick: bool) -> list[Record]:
    """Measure a sweep by other means; once, whatever the pairs are, since it takes minutes."""
    few: dict[str, Any] = {}
    if quick:
        config = ["model=lenet5", "data=mnist", processes.NOISE, "data.limit=256"]
        few = {"config": [*config, "trainer.epochs=1"], "trials": 2, "alone": 2}
    measured = population.measure(name, sys.executable, **few)
    return [result | {"name": f"population_{name}"} for result in measured]


def start(model: str, pairs: int, quick: bool) -> list[Record]:
    """Measure the first step of a deep network against its limits, once cold and once warm."""
    limits = {"cold": 30.0 if "resnet" in model else 20.0, "warm": 6.0}
    chosen = "lenet5" if quick else model
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for state, limit in limits.items():
            taken = startup.first_step(chosen, Path(folder), state)
            pair, facts = (taken["seconds"], limit), {"cpu_seconds": taken["cpu_seconds"]}
            compared = (f"python {' '.join(startup.COMMAND)} model={chosen}", "a limit")
            name, peer = f"startup_{chosen}_{state}", f"limit of {limit:g} s"
            results.append(record(name, peer, [pair], compared, **facts))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--json", type=Path, help="file to add to; with --quick nothing otherwise")
    parser.add_argument("--pairs", type=int, default=7, help="turns of ours and of the peer")
    parser.add_argument("--compile", action="store_true", help="also against torch.compile")
    parser.add_argument("--quick", action="store_true", help="once, with tiny sizes")
    options = parser.parse_args()
    if options.pairs < 1:
        parser.error("--pairs: at least 1")
    known = benchmarks(options.compile)
    names = options.only.split(",") if options.only else list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no benchmark {unknown[0]!r}; there are: {', '.join(known)}")
    path = options.json
    if path is None and not options.quick:
        path = ROOT / "benchmarks/results" / f"{_slug(machine())}.json"
    print(machine())
    print(HEAD)
    for name in names:
        try:
            results = known[name](1 if options.quick else options.pairs, options.quick)
        except LeftOutError as why:
            print(f"{name:22} left out: {why}", flush=True)
            continue
        results = [r | surroundings() | {"quick": options.quick} for r in results]
        for result in results:
            print(line(result), flush=True)
        if path is not None:
            add(path, results)


def add(path: Path, results: list[Record]) -> None:
    """Write results into a file, in the place of those that they repeat, and beside it a table."""
    new = {(result["name"], result["peer"]): result for result in results}
    old = json.loads(path.read_text()) if path.exists() else []
    others = [result for result in old if (result["name"], result["peer"]) not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    every = [*others, *new.values()]
    path.write_text(json.dumps(every, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(every))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


if __name__ == "__main__":
    main()
