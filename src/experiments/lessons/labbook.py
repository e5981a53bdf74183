"""Run every lesson and write the lab book: a page each, an index, and `verdicts.json`.

python -m experiments.lessons.labbook docs/labbook [lesson ...]
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.errors import UserError, suggest
from experiments.machine import CONFIG, command, write_whole

VERDICTS = "verdicts.json"


def lessons() -> list[str]:
    """Return the names of all lessons."""
    found = (CONFIG / "experiment" / "lesson").glob("[!_]*.yaml")
    return sorted(path.stem for path in found)


def write_lab_book(folder: Path, names: list[str]) -> dict[str, Any]:
    """Run lessons, write their pages below `folder`, and return all that it holds by name.

    A lesson that fails keeps the page that it had.

    Raises:
      UserError: there is no such lesson.
    """
    every = lessons()
    for name in names:
        if name not in every:
            raise UserError(f"{name}: there is no such lesson{suggest(name, every)}")
    file = folder / VERDICTS
    records = json.loads(file.read_text()) if file.exists() else {}
    records = {name: record for name, record in records.items() if name in every}
    for name in names or every:
        began = time.perf_counter()
        print(f"{name} ...", flush=True)
        if (record := _run(folder, name)) is not None:
            records = {
                n: record if n == name else records[n] for n in every if n in {*records, name}
            }
            write_whole(file, (json.dumps(records, indent=2) + "\n").encode())
            write_whole(folder / "README.md", index_of(records).encode())
            print(f"{record['verdict']}, {time.perf_counter() - began:.0f} s", flush=True)
    return records


def index_of(records: dict[str, Any]) -> str:
    """Return the index in Markdown: each lesson with its verdict, and how long it takes."""
    rows = [
        f"| [{record['title']}]({name}/README.md) | **{record['verdict']}** "
        f"| {_counts(record)} | {record['seconds']:.0f} s |"
        for name, record in records.items()
    ]
    seconds = sum(record["seconds"] for record in records.values())
    return (
        "# Lab book\n\n"
        "Claims of a deep-learning textbook, each measured by one command, "
        "`python run.py experiment=lesson/<name>`. The verdicts are computed from the numbers: a "
        "lesson holds if all its claims do, and one run against one decides nothing. "
        "`python report.py <run folder>` shows a lesson that you ran.\n\n"
        "| lesson | verdict | its claims | time |\n"
        "| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n\n"
        f"`make labbook` makes these pages anew; the lessons themselves took {seconds / 60:.0f} "
        "minutes, one after another.\n"
    )


def _counts(record: dict[str, Any]) -> str:
    verdicts = [finding["verdict"] for finding in record["findings"]]
    words = {"holds": "hold", "does not hold": "do not", "undecided": "undecided"}
    counts = {says: verdicts.count(verdict) for verdict, says in words.items()}
    return ", ".join(f"{count} {says}" for says, count in counts.items() if count)


def _run(folder: Path, name: str) -> dict[str, Any] | None:
    """Run a lesson in a process of its own; return its record, or None if it fails."""
    with tempfile.TemporaryDirectory(prefix="lesson_") as scratch:
        run = Path(scratch) / name
        arguments = [f"experiment=lesson/{name}", f"hydra.run.dir={run}"]
        done = subprocess.run([*command("run"), *arguments])
        if done.returncode:
            print(f"{name} failed with exit code {done.returncode}", file=sys.stderr)
            return None
        own = folder / name
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        shutil.copy(run / "lesson.md", own / "README.md")
        if (run / "figures").is_dir():
            shutil.copytree(run / "figures", own / "figures")
        return json.loads((run / "lesson.json").read_text())


if __name__ == "__main__":
    where, *chosen = sys.argv[1:] or ["docs/labbook"]
    try:
        done = write_lab_book(Path(where), chosen)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    sys.exit(0 if set(chosen or lessons()) <= set(done) else 1)
