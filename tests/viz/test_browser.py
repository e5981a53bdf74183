"""Pages as a real browser shows them: nothing is fetched, everything is drawn, on a phone too."""

import json

import pytest
import yaml

from browser import CHROMIUM, browser
from experiments.viz.pages.runs_page import compare_runs
from experiments.viz.pages.study_page import study_page
from made_up import made_up_study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (Debian: apt-get install chromium)"),
]
COMMAND = "python run.py optim=adam " + " ".join(f"model.some_key_{i}=0.123456" for i in range(20))


def write_run(folder, seed=0, rate=0.1, data="digits"):
    """A run of three epochs with its files."""
    (folder / ".hydra").mkdir(parents=True)
    config = {
        "seed": seed,
        "optim": {"learning_rate": rate},
        "data": {"name": data},
        "objective": {"_target_": "package.Classification"},
    }
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(COMMAND.split()[2:]))
    value = 0.9 - rate + seed / 100
    summary = {"status": "finished", "monitor": "val/accuracy", "monitor_mode": "max"}
    summary |= {"best": {"epoch": 3.0, "val/accuracy": value}, "test/accuracy": value - 0.01}
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [
        {
            "step": int(10 * e),
            "epoch": e,
            "val/accuracy": value * e / 3,
            "val/loss": 1 / e,
            "train/loss": 1 / e,
        }
        for e in (1.0, 2.0, 3.0)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A browser without a network."""
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(study_page(made_up_study(command=COMMAND)))
    return path


def headings(page):
    return page.see("[...document.querySelectorAll('h2')].map((h) => h.textContent)")


def fits(page):
    """Whether nothing but the inside of tables and charts scrolls sideways."""
    return page.see("document.documentElement.scrollWidth <= innerWidth")


def test_a_study_is_drawn_whole_and_without_a_complaint(page, study):
    page.open(study)
    assert page.errors == []
    assert headings(page)[1:] == [
        "val/accuracy and parameters of each trial",
        "Learning curves; darker is better",
        "val/accuracy by each parameter",
        "Importance of the parameters for val/accuracy (PED-ANOVA)",
        "val/accuracy by the two most important ranges of numbers",
        "val/accuracy of each trial, and the best so far",
    ]
    curves = "document.querySelectorAll('.chart')[{}].querySelectorAll('.trace.scatter').length"
    assert page.see(curves.format(0)) >= 11  # a line of each trial with a value
    assert page.see(curves.format(1)) == 11  # one has diverged
    ticks = "[...document.querySelectorAll('.chart')[1].querySelectorAll('.xtick')]"
    assert page.see(f"{ticks}.map((t) => t.textContent).filter(Boolean)") == ["1", "2", "3"]
    assert study.stat().st_size < 2.2e6


def test_a_command_wraps_and_is_copied_by_its_button(page, study):
    page.open(study, width=600)
    assert page.see(
        "document.querySelector('pre').scrollWidth <= document.querySelector('pre').clientWidth"
    )
    assert page.see("document.querySelector('pre').clientHeight > 60")
    page.see("addEventListener('copy', () => { window.copied = String(getSelection()) })")
    page.click(".command button")
    assert page.see("window.copied") == COMMAND
    assert page.see("document.querySelector('.command button').textContent") == "copied"


def test_pages_fit_a_phone_and_a_sheet_of_paper(page, study, tmp_path):
    for rate in (0.1, 0.2, 0.3):
        for seed in (0, 1):
            write_run(tmp_path / "runs" / f"{rate}_{seed}", seed, rate)
    compare_runs([tmp_path / "runs"], tmp_path / "runs")
    for path in (study, tmp_path / "runs" / "report.html"):
        page.open(path, width=400)
        assert fits(page), path
        page("Emulation.setEmulatedMedia", media="print")
        shown = "getComputedStyle(document.querySelector('button') || document.head).display"
        assert page.see(shown) == "none"
        page("Emulation.setEmulatedMedia", media="")
    assert page.errors == []


def test_a_folder_of_runs_names_ten_curves_and_the_others_on_demand(page, tmp_path):
    for index in range(12):
        write_run(tmp_path / "runs" / f"r{index}", rate=0.01 * (1 + index))
    write_run(tmp_path / "runs" / "other", data="moons")
    compare_runs([tmp_path / "runs"], tmp_path / "runs")
    page.open(tmp_path / "runs" / "report.html")
    assert page.see("document.querySelector('h1').textContent") == "runs"
    first, second = (h for h in headings(page) if "setting" in h)
    assert first == "digits, classification, val/accuracy: 12 settings, best first"
    assert second == "moons, classification, val/accuracy: one setting"
    names = "document.querySelector('.chart').querySelectorAll('.legendtext').length"
    assert page.see(names) == 10
    page.click(".updatemenu-button")
    page.until(f"{names} == 12")
    assert page.errors == []


def test_a_run_shows_its_curves_at_once(page, tmp_path):
    write_run(tmp_path / "a run")
    compare_runs([tmp_path / "a run"], tmp_path / "a run")
    page.open(tmp_path / "a run" / "report.html")
    assert page.see("document.title") == "a run"
    assert headings(page) == ["loss", "accuracy"]
    assert page.see("document.querySelectorAll('.chart .trace.scatter').length") == 4
    assert page.errors == []


def test_of_two_metrics_the_front_is_drawn(page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(study_page(made_up_study(metrics=("val/accuracy", "parameters"))))
    page.open(path)
    assert (
        "Trials by val/accuracy and parameters: the front, where none is beaten in all"
        in headings(page)
    )
    assert "parameters of each trial, and the best so far" in headings(page)
    assert page.errors == []
