"""Pretraining without labels, then training with and without what was learnt."""

import json

import pytest

SMALL = ["mode=pretrain", "model.hidden=[8,4]", "data.limit=128", "trainer.epochs=1"]
QUICK = ["trainer.figures=false", "logger=none"]


def first(*overrides):
    """A first stage as a user types it, whose shell leaves no quotes within."""
    whole = ["model=autoencoder", "model.hidden=[8]", "model.latents=4", "trainer.epochs=1"]
    return f"pretrain.overrides=[{','.join([*whole, *overrides])}]"


def test_the_three_stages_are_trained_and_compared(run_cli, tmp_path):
    code, error = run_cli(*SMALL, *QUICK, first("trainer.figures=false"))
    assert code == 0, error
    assert "loaded 4 of 6 arrays" in error
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["labels"] == 128
    assert {"pretrained/test/accuracy", "from_scratch/test/accuracy"} <= summary.keys()
    stages = {path.parent.name for path in (tmp_path / "run").glob("*/summary.json")}
    assert stages == {"pretraining", "pretrained", "from_scratch"}


@pytest.mark.parametrize(
    ("stage", "own", "said"),
    [
        ("model.latents=-4", [], "pretraining: model.latents=-4: must be"),
        ("trainer.monitor=los", [], "pretraining: trainer.monitor=los: "),
        ("objective.epochs_a_layer=1", [], "pretraining: objective.epochs_a_layer=1, of 2 layers"),
        ("seed=1", ["data.batch_size=4096"], "pretrained: "),
        ("seed=1", ["trainer.monitor=acuracy"], "pretrained: trainer.monitor=acuracy: "),
        ("seed=1", ["model.pretrained=runs/other"], "model.pretrained=runs/other: mode=pretrain"),
        ("seed=1", ["model=lenet5"], "pretrain.overrides: none of its weights fits the model"),
    ],
)
def test_nothing_is_trained_where_any_stage_is_wrong(run_cli, tmp_path, stage, own, said):
    rest = [a for a in SMALL if not a.startswith("model.hidden") or "model=lenet5" not in own]
    code, error = run_cli(*rest, *QUICK, first(stage), *own)
    assert code == 2
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "run/pretraining").exists()
