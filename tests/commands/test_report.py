"""The report of a study: one page that a browser shows without anything else, and PNGs."""

import html.parser
import shutil
import subprocess

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image

from experiments.commands.report import study_data, write_comparison, write_report
from experiments.viz.pages.study_page import StudyData, comparison, study_figures, study_page
from support import ROOT

CHROMIUM = next((p for n in ("chromium", "chromium-browser") if (p := shutil.which(n))), None)


def made_up(trials: int = 12) -> StudyData:
    """A study with a list, a log range, and a parameter that not every trial has."""
    study = optuna.create_study(study_name="<made up>", direction="maximize")
    distributions = {
        "optim": CategoricalDistribution(["adam", "sgd"]),
        "optim.learning_rate": FloatDistribution(1e-5, 0.1, log=True),
        "optim.momentum": FloatDistribution(0.5, 0.99),
    }
    for i in range(trials):
        values = {"optim": ["adam", "sgd"][i % 2], "optim.learning_rate": 10 ** (-1 - i / 3)}
        if i % 2:
            values["optim.momentum"] = 0.5 + i / 40
        value = None if i == 3 else 0.9 - abs(i - 6) / 20
        reason = {"state": "diverged", "reason": "diverged at step 7"}
        trial = create_trial(
            state=TrialState.FAIL if i == 3 else TrialState.COMPLETE,
            value=value,
            params=values,
            distributions={name: distributions[name] for name in values},
            user_attrs={"seconds": 1.5} | (reason if i == 3 else {"state": "finished"}),
            intermediate_values={e + 1: (value or 0.1) * x for e, x in enumerate((0.5, 0.8, 1))},
        )
        study.add_trial(trial)
    command = "python run.py optim=adam"
    return StudyData(study, "random", "val/accuracy", command, {"test/accuracy": 0.87})


def in_chromium(page, *arguments: str) -> subprocess.CompletedProcess:
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--virtual-time-budget=8000", *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (Debian: apt-get install chromium)")
def test_a_browser_draws_every_chart_without_a_network(tmp_path):
    page = tmp_path / "report.html"
    page.write_text(study_page(made_up()))
    done = in_chromium(page, "--dump-dom", "--host-resolver-rules=MAP * ~NOTFOUND")
    drawn = done.stdout
    # parallel coordinates, learning curves, slices, importance, contour, history
    assert drawn.count('plotly-graph-div js-plotly-plot"') == 6
    assert 'class="contour"' in drawn
    # a line and a curve per trial that has a value, three slices, two of the history
    assert drawn.count('class="trace scatter') >= 11 + 11 + 3 + 2
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
    figures = study_figures(data)
    names = {"history", "learning_curves", "slices", "parallel_coordinates", "importance"}
    assert figures.keys() == names | {"contour"}
    scales = {ax.get_xlabel(): ax.get_xscale() for ax in figures["slices"].axes}
    assert scales["optim.learning_rate"] == "log"
    assert scales["optim.momentum"] == "linear"
    assert "No trial has a value yet" in study_page(
        waiting := StudyData(optuna.create_study(), "grid", "val/loss")
    )
    assert study_figures(waiting) == {}
    points, best = comparison([data, data]).axes[::2]
    assert points.get_xscale() == "log"
    assert [len(line.get_xdata()) for line in best.lines] == [11, 11]


def test_charts_show_the_values_of_configs_and_pruned_trials(make_study):
    parameters = {"data.batch_size": {"distribution": "q_uniform", "min": 10, "max": 60, "q": 32}}
    study = make_study(n_trials=8, parameters=parameters)
    for trial in study.claim(7):
        state = "finished" if trial.number < 2 else "pruned"
        study.finish(trial, state, [trial.number / 10], seconds=1.0)
    data = study_data(study)
    assert [trial.number for trial in data.ranked] == [6, 5, 4, 3, 2, 1, 0]
    sizes = {trial.params["data.batch_size"] for trial in data.ranked}
    assert sizes == {trial.user_attrs["values"]["data.batch_size"] for trial in data.ranked}
    assert sizes <= {0, 32, 64}  # rounded, also out of the range
    states = [trial.user_attrs["state"] for trial in data.trials]
    assert states == ["finished"] * 2 + ["pruned"] * 5 + ["waiting"]
    assert study_figures(data).keys() >= {"slices", "importance", "history"}


def test_reports_are_written_into_the_study(make_study, tmp_path, capsys):
    studies = []
    for name in "ab":
        study = make_study(tmp_path / name, n_trials=6)
        while trials := study.claim(1):
            value = trials[0].values["optim.learning_rate"]
            study.finish(trials[0], "finished", [value], seconds=1.0)
        studies.append(study.folder)
    write_report(studies[0], ROOT / "conf")
    assert (studies[0] / "report.html").stat().st_size > 1e6
    for path in (studies[0] / "figures").iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 100
    assert "6 finished" in capsys.readouterr().out
    write_comparison(studies, ROOT / "conf")
    assert (tmp_path / "comparison.png").exists()
