"""The page of a lesson, in Markdown."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.lessons.lesson import Lab, Lesson


def title_of(lesson: Lesson) -> str:
    """Return the first line of a lesson's docstring, without its full stop."""
    return (type(lesson).__doc__ or "").strip().partition("\n")[0].rstrip(".")


def page_of(lesson: Lesson, lab: Lab, command: str, seconds: float) -> str:
    """Return the lesson's page in Markdown; its figures are beside it in `figures/`."""
    _, _, text = (type(lesson).__doc__ or "").partition("\n")
    rows = [f"| {f.claim} | **{f.verdict}** | {f.numbers} |" for f in lab.findings]
    parts = [
        f"# {title_of(lesson)}",
        _without_sections(text),
        f"    {command}",
        "| claim | verdict | numbers |\n| --- | --- | --- |\n" + "\n".join(rows),
        *(f"![{name}](figures/{name}.png)\n\n{says}" for name, says in lab.figures.items()),
        *lab.tables,
        f"Measured in {seconds:.0f} s.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _without_sections(docstring: str) -> str:
    """Return the text of a docstring, without its arguments; references stay."""
    blocks = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(block for block in blocks if not block.startswith("Args:"))
