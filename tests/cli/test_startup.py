"""Arguments as a user types them, and as Hydra takes them."""

import subprocess
import sys

import pytest

from experiments.cli.startup import SWEEPER, for_hydra
from experiments.errors import UserError
from support import ROOT


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("model=lenet5 optim.b1=0.8", "model=lenet5 optim.b1=0.8"),
        ("debug=nan", "debug='nan'"),
        ("seed=3", "seed=3"),
        ("seed=range(4)", "-m seed=range(4) {own}side_by_side=auto"),
        ("seed=1,2 side_by_side=1", "-m seed=1,2 {own}side_by_side=1"),
        ("optim=adam,sgd --multirun n_trials=3", "-m optim=adam,sgd {own}n_trials=3"),
        ("-m cluster=slurm cluster.time=9", "-m {own}cluster.name=slurm {own}cluster.time=9"),
        ("-m name=x name.y=1 model.name=z", "-m {own}name=x {own}name.y=1 model.name=z"),
        (
            "checkpoint=x sample.length=9 hydra.run.dir=y mode=sample",
            "checkpoint=x ++sample.length=9 hydra.run.dir=y mode=sample",
        ),
        ("resume=null", "resume=null"),
    ],
)
def test_arguments_are_translated_for_hydra(typed, wanted):
    assert for_hydra(typed.split()) == wanted.format(own=SWEEPER).split()


def test_a_resumed_run_stays_in_its_folder(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(UserError, match="does not exist"):
        for_hydra([f"resume={folder}"])
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text("name: x")
    given = [f"resume={folder}", "trainer.epochs=9"]
    own = f"hydra.run.dir={folder}"
    assert for_hydra(given) == [given[0], "++trainer.epochs=9", own]


INTERRUPTED_IMPORT = """
import os, runpy, signal, sys

class CtrlC:
    def find_spec(self, name, *_):
        if name == "experiments.cli.main":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, CtrlC())
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize("program", ["run.py", "sweep.py", "report.py"])
def test_ctrl_c_during_the_imports_is_one_line(program):
    command = [sys.executable, "-c", INTERRUPTED_IMPORT, program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (130, "interrupted")
