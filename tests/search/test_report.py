"""The report of a study: one page that a browser shows without anything else, and PNGs."""

import html.parser
import shutil
import subprocess

import pytest
from PIL import Image

from experiments.search.report import write_comparison, write_report
from experiments.viz.study_data import Axis, Row, StudyData
from experiments.viz.study_figures import all_figures, comparison
from experiments.viz.study_page import study_page
from support import ROOT

CHROMIUM = next((p for n in ("chromium", "chromium-browser") if (p := shutil.which(n))), None)


def made_up(trials: int = 12) -> StudyData:
    """A study with a list, a log range, and a parameter that not every trial has."""
    rows = []
    for i in range(trials):
        values = {"optim": ["adam", "sgd"][i % 2], "optim.learning_rate": 10 ** (-1 - i / 3)}
        if i % 2:
            values["optim.momentum"] = 0.5 + i / 40
        value = None if i == 3 else 0.9 - abs(i - 6) / 20
        curve = ((1.0, 2.0, 3.0), tuple((value or 0.1) * x for x in (0.5, 0.8, 1)))
        state, reason = ("diverged", "diverged at step 7") if i == 3 else ("finished", None)
        rows.append(Row(i, state, value, values, 1.5, reason, curve))
    axes = [
        Axis("optim", False, ("adam", "sgd")),
        Axis("optim.learning_rate", True, None),
        Axis("optim.momentum", False, None),
    ]
    importance = {"optim.learning_rate": 0.8, "optim": 0.2}
    return StudyData(
        "<made up>", "random", "val/accuracy", "maximize", trials, axes, rows, importance,
        "python run.py optim=adam", {"test/accuracy": 0.87},
    )  # fmt: skip


def in_chromium(page, *arguments: str) -> subprocess.CompletedProcess:
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--virtual-time-budget=8000", *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (Debian: apt-get install chromium)")
def test_a_browser_draws_every_chart_without_a_network(tmp_path):
    page = tmp_path / "report.html"
    page.write_text(study_page(made_up()))
    done = in_chromium(page, "--dump-dom", "--host-resolver-rules=MAP * ~NOTFOUND")
    drawn = done.stdout
    assert drawn.count('class="parcoords"') >= 1
    # coordinates, curves, three slices, importance, history
    assert drawn.count('plotly-graph-div js-plotly-plot"') == 7
    assert drawn.count('class="trace scatter') >= 12  # a curve a trial that has a value, and more
    picture = tmp_path / "page.png"
    in_chromium(page, f"--screenshot={picture}", "--window-size=1150,3000")
    with Image.open(picture) as image:
        colours = image.convert("RGB").resize((230, 600)).getcolors(1 << 18)
    assert len(colours) > 50  # not an empty page


def test_the_page_needs_nothing_else():
    sources = []

    class Finder(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            sources.extend(v for k, v in attributes if k in ("src", "href"))

    page = study_page(made_up())
    Finder().feed(page)
    assert sources == []
    assert "&lt;made up&gt;" in page
    assert "1 x diverged at step 7" in page


def test_figures_are_drawn_for_studies_of_any_kind():
    data = made_up()
    names = {"history", "learning_curves", "slices", "parallel_coordinates", "importance"}
    assert all_figures(data).keys() == names
    nothing = StudyData("x", "grid", "val/loss", "minimize", 4, data.axes, (), {}, None)
    assert all_figures(nothing).keys() == {"history"}
    assert "No trial has a value yet" in study_page(nothing)
    assert len(comparison([data, data]).axes) == 2 + 1  # where each looked, and how fast


def test_reports_are_written_into_the_study(make_study, tmp_path, capsys):
    studies = []
    for name in "ab":
        study = make_study(tmp_path / name, n_trials=6)
        while trials := study.claim(1):
            value = trials[0].values["optim.learning_rate"]
            study.finish(trials[0], "finished", value, seconds=1.0)
        studies.append(study.folder)
    write_report(studies[0], ROOT / "conf")
    assert (studies[0] / "report.html").stat().st_size > 1e6
    for path in (studies[0] / "figures").iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 100
    assert "6 finished" in capsys.readouterr().out
    write_comparison(studies, ROOT / "conf")
    assert (tmp_path / "comparison.png").exists()
