"""Run a lesson of the lab book: train, draw, and print what the numbers say of its claims."""

from pathlib import Path
from typing import Any

from experiments.core.config import build
from experiments.errors import UserError


def main(config: dict[str, Any], directory: Path, source: Path | None) -> None:
    """Run the lesson in `directory`, which then holds its page, `lesson.md`."""
    if config["lesson"] is None:
        raise UserError("mode=lesson: choose a lesson, such as experiment=lesson/xor")
    name = config["name"]
    findings = build(config["lesson"])(directory, f"python run.py experiment=lesson/{name}")
    for finding in findings:
        print(f"{finding.verdict:14} {finding.claim}\n{'':14} {finding.numbers}")
    print(f"page           {directory / 'lesson.md'}")
