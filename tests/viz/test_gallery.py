"""What a run of each kind of generative model leaves to look at."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments.training.helper import helper
from experiments.viz.frechet import frechet_distance
from experiments.viz.image_figures import mosaic

SHORT = ["logger=none", "trainer.epochs=2", "trainer.steps_per_epoch=3", "data.batch_size=32"]


def pictures(folder):
    """Names of the pictures of a run, each of which has something on it."""
    found = {path.stem for path in (folder / "figures").glob("*.png")}
    for name in found:
        picture = np.asarray(Image.open(folder / "figures" / f"{name}.png").convert("L"))
        assert picture.std() > 1, name
    # what draws is handed numbers, not arrays of a device
    assert not helper().submit("drawing", eval, "'jax' in __import__('sys').modules").result()
    return found


def test_an_autoencoder_is_shown_during_training_and_at_the_end(run_cli, tmp_path):
    code, error = run_cli("model=denoising_autoencoder", "model.latents=9", *SHORT)
    assert code == 0, error
    assert pictures(tmp_path / "run") == {
        "learning_curves", "reconstructions", "latents", "first_layer",
        "reconstructions_00000003", "reconstructions_00000006",
    }  # fmt: skip


def test_a_vae_shows_its_latents_and_samples_over_time(run_cli, tmp_path):
    options = ["model=vae", "model.hidden=[16]", "model.latents=2", "model.conditional=true"]
    code, error = run_cli(*options, *SHORT)
    assert code == 0, error
    run = tmp_path / "run"
    assert pictures(run) >= {"samples", "interpolation", "manifold", "latents", "first_layer"}
    assert Image.open(run / "figures" / "samples.gif").n_frames == 2
    (run / "figures" / "manifold.png").unlink()
    code, error = run_cli("mode=figures", f"checkpoint={run}", folder=tmp_path / "again")
    assert code == 0, error
    assert "manifold" in pictures(run)


def test_samples_are_judged_by_a_classifier_of_an_earlier_run(run_cli, tmp_path):
    judge = tmp_path / "judge"
    code, error = run_cli("model=mlp", "model.hidden=[16]", *SHORT, folder=judge)
    assert code == 0, error
    options = ["model=gan", "model.hidden=[16]", f"objective.classifier={judge}"]
    code, error = run_cli(*options, *SHORT)
    assert code == 0, error
    assert "classes" in pictures(tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test/frechet"] > 0
    assert 0.1 <= summary["test/confidence"] <= 1
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert sum("val/frechet" in line for line in lines) == 2


@pytest.mark.parametrize("option", ["model.latents=0", "loss=mse", "loss=non_saturating"])
def test_what_does_not_go_with_a_vae_is_said_in_a_line(run_cli, option):
    code, error = run_cli("model=vae", option, "debug=fast")
    assert code == 2
    said = error[error.index("error:") :]  # after what a first use of the data says
    assert len(said.strip().splitlines()) <= 2
    assert option.partition("=")[0] in said


def test_the_frechet_distance_of_normal_distributions():
    generator = np.random.default_rng(0)
    a = generator.normal(size=(200_000, 2)) * [1.0, 2.0]
    b = generator.normal(size=(200_000, 2)) * [3.0, 2.0] + [1.0, -2.0]
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + (3 - 1) ** 2, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_a_mosaic_keeps_the_order_of_the_images():
    images = np.arange(6.0).reshape(6, 1, 1, 1) / 5
    picture = mosaic(images, 3)[::2, ::2, 0]  # without the borders
    np.testing.assert_allclose(picture, [[0, 0.2, 0.4], [0.6, 0.8, 1.0]], rtol=1e-6)
