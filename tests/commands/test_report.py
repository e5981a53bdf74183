"""The report of a study: one page that a browser shows without anything else, and PNGs."""

import html.parser
import json
import math
from dataclasses import replace

import optuna
import pytest
from optuna.trial import create_trial
from PIL import Image

from experiments.commands.report import labels_of, study_data, write_comparison, write_report
from experiments.search.results import write_results
from experiments.viz.pages.records import RunData
from experiments.viz.pages.settings import Setting
from experiments.viz.pages.studies_page import (
    side_by_side,
    studies_figure,
    studies_page,
    verdicts,
)
from experiments.viz.pages.study_page import StudyData, relabel, study_figures, study_page
from made_up import made_up_study
from support import ROOT

CHOICES = {"optim": {"values": ["adam", "sgd"]}}
SEEDS = CHOICES | {"seed": {"values": [0, 1]}}


def test_the_page_needs_nothing_else():
    sources = []

    class Finder(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            sources.extend(v for k, v in attributes if k in ("src", "href"))

    page = study_page(made_up_study())
    Finder().feed(page)
    assert sources == []
    assert "&lt;made up&gt;" in page
    assert "1 x diverged at step 7" in page


def test_figures_are_drawn_for_studies_of_any_kind():
    data = made_up_study()
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
    compared = side_by_side(["random", "other"], [data, data])
    points, best = studies_figure(compared).axes[::2]
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


def searched(make_study, folder, **plan):
    """A study of six trials whose value is their learning rate."""
    study = make_study(folder, n_trials=6, **plan)
    while trials := study.claim(1):
        value = trials[0].values["optim.learning_rate"]
        study.finish(trials[0], "finished", [value], seconds=1.0)
    return study


def test_reports_are_written_into_the_study(make_study, tmp_path, capsys):
    folder = searched(make_study, tmp_path / "a").folder
    write_report(folder, ROOT / "conf")
    assert (folder / "report.html").stat().st_size > 1e6
    for path in (folder / "figures").iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 100
    assert "6 finished" in capsys.readouterr().out


def test_studies_are_labelled_by_what_differs_and_compared_elsewhere(make_study, tmp_path, capsys):
    plans = {"a": {"method": "random"}, "b": {"method": "bayes", "seed": 1}}
    folders = [searched(make_study, tmp_path / n, **plan).folder for n, plan in plans.items()]
    into = tmp_path / "elsewhere"
    into.mkdir()
    write_comparison(folders, ROOT / "conf", into)
    shown = capsys.readouterr().out
    assert "method=random: best" in shown  # the other one has a seed too; this one the usual one
    assert "method=bayes: best" in shown
    assert "(Mann-Whitney)" in shown  # of one study each
    assert {path.name for path in into.iterdir()} == {"report.html", "comparison.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "elsewhere"}


def test_repeated_studies_are_compared_by_their_best_values():
    values = {"random": ([0.5, 0.7, 0.9], [0.2, 0.71, 0.0]), "bayes": ([0.9, 0.2], [0.91, 0.1])}
    studies, labels = [], []
    for label, each in values.items():
        for some in each:
            study = optuna.create_study(direction="maximize")
            for value in some:
                study.add_trial(create_trial(value=value, user_attrs={"state": "finished"}))
            studies.append(StudyData(study, label, "val/accuracy"))
            labels.append(label)
    random, bayes = compared = side_by_side(labels, studies)
    assert random.budget == 2
    assert random.best == [0.7, 0.71]  # not of the third trial, which the others do not have
    assert bayes.best == [0.9, 0.91]
    (verdict,) = verdicts(compared)
    assert "differ by -0.2 on average" in verdict
    assert "(Welch): more than noise" in verdict
    assert "more than noise" in studies_page("random and bayes", compared)


def test_seeds_of_the_same_values_are_one_in_both_kinds_of_study(make_study, tmp_path):
    """Whether the study has `seeds=2`, whose values are medians, or varies its seed."""
    both = make_study(tmp_path / "a", n_trials=2, parameters=CHOICES, method="grid", seeds=2)
    varied = make_study(tmp_path / "b", n_trials=4, parameters=CHOICES | SEEDS, method="grid")
    for study, values in ((both, [0.7, 0.5]), (varied, [0.6, 0.8, 0.4, 0.6])):
        for trial, value in zip(study.claim(4), values, strict=True):
            study.finish(trial, "finished", [value], seconds=1.0)
    compared = side_by_side(["seeds=2", "seed"], [study_data(both), study_data(varied)])
    assert [one.budget for one in compared] == [2, 2]
    assert "are alike at the median" in verdicts(compared)[0]
    assert [one.values for one in compared] == [[pytest.approx([0.7, 0.5])]] * 2


def test_ticks_of_parallel_coordinates_are_round_and_where_their_values_are():
    data = made_up_study()
    figure = optuna.visualization.plot_parallel_coordinate(data.study, list(data.varied))
    relabel(figure, data)
    assert list(figure.layout.xaxis.ticktext)[2] == "optim.learning_rate"
    ticks = {one.text: one.y for one in figure.layout.annotations if one.x == 2}
    assert set(ticks) == {"0.1", "0.01", "0.001", "0.0001"}
    rates = [trial.params["optim.learning_rate"] for trial in data.ranked]
    low, high = math.log10(min(rates)), math.log10(max(rates))
    assert ticks["0.01"] == pytest.approx((-2 - low) / (high - low))
    lines = [line for line in figure.data if line.customdata is not None]
    drawn = {line.customdata[2][1]: line.y[2] for line in lines}
    assert drawn["0.1"] == pytest.approx(ticks["0.1"])


def test_replicates_take_the_place_of_trials(make_study):
    study = make_study(n_trials=4, parameters=SEEDS, method="grid")
    for trial, value in zip(study.claim(4), (0.99, 0.60, 0.90, 0.92), strict=True):
        folder = study.folder_of(trial.number)
        folder.mkdir(parents=True)
        summary = {"best": {"val/accuracy": value}, "test/accuracy": value - 0.1}
        (folder / "summary.json").write_text(json.dumps(summary))
        study.finish(trial, "finished", [value], seconds=1.0)
    write_results(study)
    data = study_data(study)
    assert list(data.varied) == ["optim"]  # the seed is no hyperparameter
    assert [one.validation for one in data.settings] == [[0.90, 0.92], [0.99, 0.60]]
    page = study_page(data)
    assert "0.9100 ± 0.014" in page
    assert "0.8100 ± 0.014" in page  # on the test split


def test_labels_leave_out_what_is_null_or_as_usual(make_study, tmp_path):
    plans = {"a": {"seeds": 2}, "b": {"early_terminate": {"type": "median"}, "seeds": 1}}
    made = [make_study(tmp_path / name, **plan).plan for name, plan in plans.items()]
    assert labels_of(made) == ["seeds=2", "early_terminate={'type': 'median'}"]
    run = RunData("r", tmp_path)
    setting = Setting([run], "val/accuracy", False, values={"data.limit": None, "optim": "sgd"})
    assert setting.name == "optim=sgd"
    assert replace(setting, values={"data.limit": None}).name == "limit=null"
