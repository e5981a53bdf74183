"""The page of a lesson of the lab book: its claims, its figures, and where its trainings are."""

import base64
import html
from pathlib import Path
from typing import Any

from experiments.machine import called, write_whole
from experiments.tracking.jsonl import SUMMARY, read_mapping
from experiments.viz.pages import page

PAGE, RECORD = "report.html", "lesson.json"


def report_lesson(folder: Path) -> None:
    """Write `report.html` into the folder of a lesson, and print its verdict."""
    record = read_mapping(folder / RECORD)
    write_whole(folder / PAGE, lesson_page(folder, record).encode())
    print(f"{record['verdict']:14} {record['title']}")
    print(f"page           {folder / PAGE}")


def lesson_page(folder: Path, record: dict[str, Any]) -> str:
    """Return the page of a lesson, of what its `lesson.json` holds."""
    claims = [[f["claim"], f["verdict"], f["numbers"]] for f in record["findings"]]
    parts = [
        f"<h1>{html.escape(record['title'])}</h1><p>{record['verdict']}</p>",
        page.table(["claim", "verdict", "numbers"], claims),
    ]
    for name, caption in record.get("figures", {}).items():
        data = base64.b64encode((folder / "figures" / f"{name}.png").read_bytes()).decode()
        image = f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">'
        parts.append(f"<h2>{html.escape(name)}</h2><p>{html.escape(caption)}</p>{image}")
    if groups := sorted({path.parent.parent for path in folder.glob(f"*/*/{SUMMARY}")}):
        commands = "\n".join(f"{called('report')} {group}" for group in groups)
        parts.append(f"<h2>its trainings</h2><pre>{html.escape(commands)}</pre>")
    return page.document(record["title"], "".join(parts))
