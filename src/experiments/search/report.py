"""What `python report.py` does with studies."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.search.results import write_results
from experiments.search.review import study_data
from experiments.search.study import Study
from experiments.search.watch import screen

PAGE, FIGURES, COMPARISON = "report.html", "figures", "comparison.png"


def write_report(folder: Path, config_folder: Path) -> None:
    """Writes the page and the figures of a study into its folder, and prints how it stands."""
    from experiments.viz.study_figures import all_figures
    from experiments.viz.study_page import study_page

    study = Study(folder, config_folder)
    data = study_data(study)
    write_results(study)
    (folder / FIGURES).mkdir(exist_ok=True)
    for name, figure in all_figures(data).items():
        figure.savefig(folder / FIGURES / f"{name}.png", dpi=130)
    (folder / PAGE).write_text(study_page(data), encoding="utf-8")
    Console().print(screen(study))
    print(f"page        {folder / PAGE}, and PNGs in {folder / FIGURES}")


def write_comparison(folders: Sequence[Path], config_folder: Path) -> None:
    """Draws studies side by side into `comparison.png` beside the first one."""
    from experiments.viz.study_figures import comparison

    studies = [study_data(Study(folder, config_folder)) for folder in folders]
    path = folders[0].absolute().parent / COMPARISON
    comparison(studies).savefig(path, dpi=130)
    print(f"figure      {path}")
