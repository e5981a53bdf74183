"""The lab book: how its verdicts follow from numbers, and a lesson from its command to its page."""

import html
import json

import numpy as np
import pytest

from experiments.cli import report
from experiments.core.config import build
from experiments.lessons import labbook
from experiments.lessons.lesson import Lab, Lesson, overall
from experiments.viz.pages.statistics import interval_of_difference
from support import composed


def test_differences_are_judged_as_the_t_tests_judge_them():
    from scipy import stats  # takes a second to import, in each process that runs tests

    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 8), rng.normal(0, 3, 6)
    wanted = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    np.testing.assert_allclose(interval_of_difference(a, b), (wanted.low, wanted.high))
    wanted = stats.ttest_rel(a[:6], b).confidence_interval()
    found = interval_of_difference(a[:6], b, paired=True)
    np.testing.assert_allclose(found, (wanted.low, wanted.high))


def test_single_and_equal_runs_decide_nothing_but_exact_numbers_do(tmp_path):
    lab = Lab(tmp_path)
    lab.compare("one run above another", [1.0], [0.0])
    lab.compare("one run above several", [1.0], [0.0, 0.1])
    lab.compare("two of two above two", [8, 8], [0, 0])
    lab.compare("a pair above", [1.0], [0.0], paired=True)
    assert [finding.verdict for finding in lab.findings] == ["undecided"] * 4
    assert "too few runs" in lab.findings[0].numbers
    lab.findings.clear()
    lab.compare("a count above a count", 8, 0)
    lab.compare("a bound below several runs", [1.0, 1.1, 1.2], 0.5)
    lab.compare("ten of ten above a half", [1] * 10, 0.5)
    lab.compare("four of four above four", [8] * 4, [0] * 4)
    assert [finding.verdict for finding in lab.findings] == ["holds"] * 4


def test_a_verdict_can_come_out_negative_and_open(tmp_path):
    lab = Lab(tmp_path)
    noise = np.array([-0.1, 0.0, 0.1])
    lab.compare("above", 1 + noise, noise)
    lab.compare("below", noise, 1 + noise)
    lab.compare("in the noise", 0.01 + noise, noise)
    lab.compare("not much below", noise - 0.01, noise, margin=1.0)
    verdicts = [finding.verdict for finding in lab.findings]
    assert verdicts == ["holds", "does not hold", "undecided", "holds"]
    assert overall(verdicts) == "does not hold"
    assert overall(["holds", "undecided"]) == "undecided"
    assert overall(["holds"]) == "holds"


@pytest.mark.parametrize("name", labbook.lessons())
def test_every_lesson_is_composed_and_built(name):
    lesson = build(composed(f"experiment=lesson/{name}")["lesson"])
    assert isinstance(lesson, Lesson)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lesson.epochs=1", "model=lstm"], "model=lstm: a lesson does not read this"),
        (["debug=fast"], "smaller ones make it quick"),
        (["seed=1"], "its own keys are lesson.seeds, lesson.epochs"),
        (["lesson.epoch=1"], "did you mean 'lesson.epochs'?"),
        (["seed=range(3)"], "mode=lesson cannot be searched; lesson.seeds=3 repeats it"),
        (["-m", "lesson.epochs=2,3"], "mode=lesson cannot be searched"),
    ],
)
def test_what_a_lesson_cannot_do_is_refused(run_cli, tmp_path, arguments, said):
    code, error = run_cli("experiment=lesson/xor", *arguments, folders=False)
    assert code == 2
    assert said in error
    assert not (tmp_path / "run/lesson.json").exists()


def test_a_lesson_leaves_its_page_its_figures_and_its_verdict(run_cli, tmp_path, monkeypatch):
    said = ("lesson.seeds=6", "lesson.epochs=25", "logger=none")
    code, error = run_cli("experiment=lesson/xor", *said, folder=tmp_path / "run", folders=False)
    assert code == 0, error
    record = json.loads((tmp_path / "run" / "lesson.json").read_text())
    # Minsky & Papert: no single layer; Rumelhart et al.: one hidden layer does
    assert [finding["verdict"] for finding in record["findings"]] == ["holds"] * 3
    compared = record["findings"][-1]["compared"]
    assert compared["larger"] == [1.0] * 6
    assert compared["difference"] == compared["low"] == compared["high"] == 0.5
    page = (tmp_path / "run" / "lesson.md").read_text()
    assert "python run.py experiment=lesson/xor" in page
    assert (tmp_path / "run" / "figures" / "accuracy.png").exists()
    assert record["title"] in labbook.index_of({"xor": record})
    monkeypatch.setattr("sys.argv", ["report.py", str(tmp_path / "run")])
    report.main()
    shown = (tmp_path / "run" / "report.html").read_text()
    assert html.escape(record["findings"][0]["claim"]) in shown
    assert shown.count("<img") == len(record["figures"]) > 0
    assert "run/trainings" in shown
