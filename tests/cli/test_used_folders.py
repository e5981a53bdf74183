"""A run's folder is its own: what else is started there refuses, or leaves its record alone."""

import json
from pathlib import Path

import pytest

from experiments.errors import UserError
from experiments.training.run_folder import exclusive

QUICK = ["trainer.epochs=1", "trainer.figures=false", "logger=none", "model.hidden=[8]"]


@pytest.fixture
def trained(run_cli, tmp_path):
    """The folder of a finished run, with a file of its user's."""
    folder = tmp_path / "trained"
    code, error = run_cli(*QUICK, folder=folder)
    assert code == 0, error
    (folder / "notes.txt").write_text("mine")
    return folder


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_a_refused_process_changes_nothing(run_cli, trained):
    before = contents(trained)
    others = ["seed=9", "optim.learning_rate=0.5"]
    for mode in ([], ["mode=lr_range"], ["overwrite=true"], [f"resume={trained}"]):
        with exclusive(trained):
            code, error = run_cli(*QUICK[:-2], *others, *mode, folder=trained)
        assert code == 2
        assert f"another process is training in {trained}" in error
    for mode in ([], ["mode=lr_range"], ["mode=pretrain"]):
        code, error = run_cli(*QUICK, *others, *mode, folder=trained)
        assert code == 2
        for words in (f"{trained} holds a run", "resume=", "hydra.run.dir=", "overwrite=true"):
            assert words in error
        assert len(error.splitlines()) == 2
    assert contents(trained) == before


@pytest.mark.slow
def test_a_metric_that_there_is_not_is_refused_before_training(run_cli, tmp_path):
    for wrong in ("acc", "val/accuracy"):
        code, error = run_cli(*QUICK, f"trainer.monitor={wrong}", folder=tmp_path / "run")
        assert code == 2
        assert f"trainer.monitor={wrong}: " in error
        assert "did you mean 'accuracy'" in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    code, error = run_cli(*QUICK, "trainer.monitor=loss", folder=tmp_path / "run")
    assert code == 0, error


@pytest.mark.slow
def test_a_used_folder_is_cleared_on_demand(run_cli, trained):
    (trained / "checkpoints" / "999").mkdir()
    code, error = run_cli(*QUICK[:-1], "model.hidden=[4]", "overwrite=true", folder=trained)
    assert code == 0, error
    summary = json.loads((trained / "summary.json").read_text())
    assert [path.name for path in (trained / "checkpoints").iterdir()] == [str(summary["step"])]
    assert (trained / "notes.txt").read_text() == "mine"
    assert run_cli("mode=evaluate", f"checkpoint={trained}")[0] == 0
    for other in (f"resume={trained}", "mode=summary"):
        code, error = run_cli("overwrite=true", other, folder=trained)
        assert code == 2
        assert "overwrite=true" in error


@pytest.mark.slow
def test_runs_and_studies_do_not_share_a_folder(run_cli, trained, make_study):
    before, study = contents(trained), make_study()
    whole = contents(study.folder)
    for mode in ([], ["overwrite=true"]):
        code, error = run_cli(*QUICK, *mode, folder=study.folder)
        assert code == 2
        assert f"{study.folder} is the folder of a study" in error
    with pytest.raises(UserError, match="is the folder of a run"):
        make_study(trained)
    assert contents(study.folder) == whole
    assert contents(trained) == before


@pytest.mark.slow
def test_what_is_said_of_a_run_stays_beside_its_record(run_cli, trained, monkeypatch):
    before = contents(trained)
    for mode in ("evaluate", "predict", "export"):
        code, error = run_cli(f"mode={mode}", f"checkpoint={trained}", folder=trained)
        assert code == 0, error
    assert run_cli("mode=summary", "model=lenet5", folder=trained)[0] == 0
    after = contents(trained)
    new = {name: after.pop(name) for name in set(after) - set(before)}
    assert after == before
    assert set(new) == {
        *("evaluations/best.json", "predictions.csv", "model.stablehlo", "model_summary.json")
    }
    evaluated, summary = (
        json.loads(new["evaluations/best.json"]),
        json.loads(before["summary.json"]),
    )
    assert evaluated["test/accuracy"] == summary["test/accuracy"]
    monkeypatch.chdir(trained.parent)
    resume = [f"resume={trained.name}", "hydra.job.chdir=true", "trainer.epochs=2"]
    code, error = run_cli(*resume, folder=trained)
    assert code == 0, error
    assert json.loads((trained / "summary.json").read_text())["step"] == 2 * summary["step"]
    config = trained / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("mode: train", "mode: lr_range"))
    code, error = run_cli(f"resume={trained}", folder=trained)
    assert code == 2
    assert "is of mode=lr_range, which has nothing to resume" in error


def test_a_command_leaves_no_folder_behind_that_holds_nothing(
    run_cli, trained, tmp_path, monkeypatch
):
    """What works on a run writes there, what is refused nowhere."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    missing = ["data=table", "data.path=none.csv", "data.target=x"]
    for wrong in (missing, ["mode=evalute"], ["mode=predict", f"checkpoint={tmp_path}/none"]):
        assert run_cli(*QUICK, *wrong, dated=True)[0] == 2
    source = f"checkpoint={trained}"
    evaluate = ["mode=evaluate", source, "eval.tta=flip"]
    for arguments in (evaluate, [*evaluate, "name=mine"], ["mode=summary", "model=lenet5"]):
        code, error = run_cli(*arguments, dated=True)
        assert code == 0, error
    for arguments in (["mode=evaluate", f"model.pretrained={trained}"], ["mode=summary", source]):
        code, error = run_cli(*arguments, dated=True)
        assert code == 0, error
    assert json.loads((trained / "model_summary.json").read_text())["layers"]
    found = {path.name for path in (trained / "evaluations").iterdir()}
    assert found == {"mine.json", "best,eval.tta=flip.json", "pretrained.json"}
    assert list(Path().iterdir()) == []
    code, error = run_cli(*QUICK, dated=True)
    assert code == 0, error
    (run,) = Path("runs").glob("*/*")
    assert (run / "summary.json").is_file()
