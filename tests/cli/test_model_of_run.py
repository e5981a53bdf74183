"""A new run that starts from the weights of another."""

import pytest
import yaml

from experiments import compose
from support import composed

LAYERS = "model.layers=[{conv:{features:4,kernel:3}},relu,flatten,{dense:classes}]"


def run_of(folder, *overrides):
    """A folder that says that a run had this config."""
    config = composed(*overrides)
    choice = overrides[0].partition("=")[2]
    (folder / ".hydra").mkdir(parents=True)
    for name, content in {
        "config": config,
        "hydra": {"hydra": {"runtime": {"choices": {"model": choice}}}},
    }.items():
        (folder / ".hydra" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder, config["model"]


def test_that_of_a_trial_which_says_no_choices_is_the_nearest(tmp_path):
    folder, model = run_of(tmp_path / "trial", "model=lenet5", "model.pooling=max")
    (folder / ".hydra" / "hydra.yaml").unlink()
    found = compose(f"model.pretrained={folder}").model
    assert found == {**model, "pretrained": str(folder)}


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=lenet5", "model.activation=relu", "model.pooling=max"],
        ["model=cnn", LAYERS],
    ],
    ids=["lenet5", "cnn"],
)
def test_has_its_model_unless_another_is_said(tmp_path, overrides):
    folder, model = run_of(tmp_path / "run, 1", *overrides)
    source = f"model.pretrained='{folder}'"
    assert compose(source, "seed=1").model == {**model, "pretrained": str(folder)}
    said = compose("model=lenet5", source).model
    assert said == {**composed("model=lenet5")["model"], "pretrained": str(folder)}
