"""A study of tiny trials, for the tests of searches."""

from pathlib import Path

import pytest

from experiments.search.plan import Plan
from experiments.search.study import Study, create_study
from support import ROOT

TINY = [
    "model.hidden=[8]",
    "data.limit=128",
    "trainer.epochs=3",
    "trainer.figures=false",
    "logger=none",
]

LEARNING_RATE = {
    "optim.learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 0.1}
}


@pytest.fixture
def make_study(tmp_path, data_home):
    """A new study of tiny trials; keyword arguments are fields of its plan."""

    def make(folder: Path | None = None, **fields) -> Study:
        overrides = [*TINY, *data_home, *fields.pop("overrides", [])]
        settings = {"parameters": LEARNING_RATE, "n_trials": 4, "heartbeat": 2.0, **fields}
        plan = Plan(
            name="tiny", overrides=overrides, metric="val/accuracy", goal="maximize", **settings
        )
        return create_study(plan, folder or tmp_path / "study", ROOT / "conf")

    return make
