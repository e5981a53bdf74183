"""Files of a run that a disk or an editor damaged: two plain lines that name the file."""

import shutil

import pytest

from experiments.cli import report
from experiments.errors import UserError
from support import ROOT

FAST = ["debug=fast", "model.hidden=[8]", "logger=none"]
DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "list": lambda content: b"[1, 2]\n",
    "binary": lambda content: bytes(range(128, 256)) + content[:9],
    "nothing but zeros": lambda content: bytes(len(content)),
}


@pytest.mark.slow
def test_damaged_files_of_a_run_are_named(run_cli, tmp_path, monkeypatch):
    run, damaged = tmp_path / "sound", tmp_path / "damaged"
    assert run_cli(*FAST, folder=run)[0] == 0
    shutil.copytree(run, damaged)
    for name in (".hydra/config.yaml", ".hydra/hydra.yaml", "summary.json"):
        for how, damage in DAMAGES.items():
            (damaged / name).write_bytes(damage((run / name).read_bytes()))
            code, error = run_cli(f"resume={damaged}", folder=damaged)
            assert code == 2, (name, how, error)
            assert f"error: {damaged / name} is damaged" in error, (name, how, error)
            assert len(error[error.index("error:") :].splitlines()) == 2, error
            monkeypatch.setattr("sys.argv", ["experiments", str(damaged)])
            if name == ".hydra/hydra.yaml" or (how, name) == ("half", ".hydra/config.yaml"):
                continue  # of no concern to a page, which shows what there is
            with pytest.raises(UserError, match=f"{name} is damaged"):
                report.main()
        shutil.copy(run / name, damaged / name)
    (damaged / ".hydra" / "hydra.yaml").unlink()
    code, error = run_cli(f"resume={damaged}", "~optim.b1", folder=damaged)
    assert code == 2
    assert "~optim.b1: the config of" in error
    assert run_cli(f"resume={damaged}", folder=damaged)[0] == 0


@pytest.mark.slow
def test_a_choice_that_is_gone_does_not_keep_a_run_from_going_on(run_cli, tmp_path):
    own, folder = tmp_path / "own", tmp_path / "run"
    (own / "model").mkdir(parents=True)
    shutil.copy(ROOT / "conf" / "model" / "mlp.yaml", own / "model" / "mine.yaml")
    start = ["debug=fast", "logger=none", "model=mine", "--config-dir", str(own)]
    code, error = run_cli(*start, folder=folder)
    assert code == 0, error
    assert "mine" in (folder / ".hydra" / "hydra.yaml").read_text()
    for again in ([], ["--config-dir", str(own)]):
        code, error = run_cli(f"resume={folder}", "trainer.epochs=2", *again, folder=folder)
        assert code == 0, error
        assert ("is taken as it is" in error) == (not again)
