"""Text from a language model, in figures and on the command line."""

import json

import numpy as np
import pytest

from experiments.core.generation import generate
from experiments.core.rng import root_key
from experiments.errors import UserError
from experiments.training.setup import Setups
from support import composed

SMALL = ["model=lstm", "model.hidden=8", "data=text", "data.batch_size=4", "data.length=8"]


@pytest.fixture
def alphabet(tmp_path):
    """A text in which every character decides the next."""
    path = tmp_path / "alphabet.txt"
    path.write_text("abcdefgh\n" * 60, encoding="utf-8")
    return f"data.path={path}"


def test_sampling_follows_the_seed_and_the_temperature(alphabet):
    setup = Setups().of(config := composed(*SMALL, alphabet))
    hparams = setup.inputs_of(config)
    weights = setup.experiment.init_weights(hparams, root_key(0))
    settings = {"prompt": "abc", "seed": 0, "temperature": 1.0}

    def written(**changes):
        characters = "".join(setup.splits.class_names)
        arguments = setup.experiment, hparams, weights, characters
        return generate(*arguments, length=40, **(settings | changes))

    text = written()
    assert len(text) == 40
    assert set(text) <= set("abcdefgh\n")
    assert text == written()
    assert text != written(seed=1)
    assert written(temperature=0.0) == written(temperature=0.0, seed=1)
    assert len(set(written(temperature=1e6))) > len(set(written(temperature=0.0)))
    with pytest.raises(UserError, match="the training text has no 'x', 'é'"):
        written(prompt="xaé")


@pytest.mark.slow
def test_a_trained_model_goes_on_with_what_it_learned(alphabet, tmp_path, run_cli):
    folder, small = tmp_path / "run", "trainer.figures=true"
    arguments = [*SMALL, alphabet, small, "logger=none", "optim.learning_rate=0.05"]
    assert run_cli(*arguments, "trainer.epochs=15", folder=folder, folders=False)[0] == 0
    drawn = {path.name for path in (folder / "figures").glob("*.png")}
    assert {"learning_curves.png", "generated_text.png", "surprise.png"} <= drawn
    assert any(name.startswith("generated_text_0") for name in drawn)
    summary = json.loads((folder / "summary.json").read_text())
    nats = summary["test/loss"]
    assert nats < 0.5
    assert summary["test/bits_per_character"] == pytest.approx(nats / np.log(2), rel=1e-4)
    sampling = ["mode=sample", f"checkpoint={folder}", "sample.temperature=0.0", "sample.length=11"]
    out = tmp_path / "sample"
    prompt = 'sample.prompt="fgh\\nabc"'
    assert run_cli(*sampling, prompt, folder=out, folders=False) == (0, "")
    assert (out / "sample.txt").read_text() == "fgh\nabcdefgh\nabcde"
    code, message = run_cli(*sampling, "sample.prompt=XYZ", folder=out, folders=False)
    assert code == 2
    assert "sample.prompt: the training text has no 'X', 'Y', 'Z'" in message


@pytest.mark.slow
def test_a_forecast_and_a_copy_are_drawn(tmp_path, run_cli):
    common = ["logger=none", "model.hidden=4", "trainer.epochs=1", "data.examples=8"]
    common += ["data.held_out=8", "data.batch_size=8", "trainer.checkpoints=false"]
    for name, overrides in {
        "forecasts": ["model=gru", "data=sine", "data.length=5", "data.horizon=3"],
        "outputs": ["model=rnn", "data=adding", "data.length=4"],
        "sequences": ["model=encoder_decoder", "data=copy", "data.target=answer"],
    }.items():
        folder = tmp_path / name
        assert run_cli(*common, *overrides, folder=folder, folders=False)[0] == 0
        drawn = {path.stem for path in (folder / "figures").glob("*.png")}
        assert drawn == {"learning_curves", name}
