"""The figures of whole runs, by kind of objective."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.core.rng import root_key
from experiments.errors import UserError
from experiments.tracking.tracker import Tracker
from experiments.training.figures import RunFigures, view_of
from experiments.training.setup import Setups
from experiments.viz import classification_figures, drawing
from experiments.viz.figures import learning_curves
from experiments.viz.image_figures import mosaic
from experiments.viz.trial_view import DRAWN_DURING_TRAINING, figures_of
from support import Killed, composed, lines_of

SHORT = ["logger=none", "trainer.epochs=2", "trainer.steps_per_epoch=3", "data.batch_size=32"]


def pictures(folder):
    """Return the names of the pictures of a run, after a look that none is empty."""
    found = {path.stem for path in (folder / "figures").glob("*.png")}
    for name in found:
        picture = np.asarray(Image.open(folder / "figures" / f"{name}.png").convert("L"))
        assert picture.std() > 1, name
    assert not list((folder / "figures").glob(".*"))
    return found


@pytest.mark.slow
def test_an_autoencoder_is_shown_during_training_and_at_the_end(run_cli, tmp_path):
    options = ["model.latents=9", "trainer.diagnostics=true"]
    code, error = run_cli("model=denoising_autoencoder", *options, *SHORT)
    assert code == 0, error
    assert pictures(tmp_path / "run") == {
        "learning_curves", "reconstructions", "latents", "first_layer", "diagnostics",
        "reconstructions_00000003", "reconstructions_00000006",
    }  # fmt: skip


@pytest.mark.slow
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
    sampling = ["mode=sample", f"checkpoint={run}", "sample.count=21", "seed=7"]
    code, error = run_cli(*sampling, folder=tmp_path / "drawn")
    assert code == 0, error
    drawn = np.load(tmp_path / "drawn/samples.npz")
    assert (drawn["x"].shape, drawn["z"].shape) == ((21, 8, 8, 1), (21, 2))
    assert drawn["y"].tolist() == [*range(10), *range(10), 0]
    assert 0 <= drawn["x"].min() < drawn["x"].max() <= 1
    assert np.asarray(Image.open(tmp_path / "drawn/samples.png").convert("L")).std() > 1


VAE = ["model=vae", "model.hidden=[16]", *SHORT]


@pytest.mark.slow
def test_a_run_that_is_killed_while_a_picture_is_written_ends_with_all_of_them(
    run_cli, monkeypatch, tmp_path
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run_cli(*VAE, folder=whole)[0] == 0
    with monkeypatch.context() as patch:
        replaced = Path.replace

        def killed(self, target):
            if Path(target).name == "samples_00000003.png":
                raise Killed
            return replaced(self, target)

        patch.setattr(Path, "replace", killed)
        with pytest.raises(Killed):
            run_cli(*VAE, "trainer.checkpoint_every=0", folder=cut)
    assert "samples_00000003" not in pictures(cut)
    code, error = run_cli(f"resume={cut}", folder=cut)
    assert code == 0, error
    assert lines_of(cut) == lines_of(whole)
    assert pictures(cut) == pictures(whole)
    for name in sorted(pictures(cut) - {"learning_curves"}):  # which shows times
        ours, others = (folder / "figures" / f"{name}.png" for folder in (cut, whole))
        assert ours.read_bytes() == others.read_bytes(), name


@pytest.mark.slow
def test_a_damaged_picture_costs_a_line(run_cli, tmp_path):
    run = tmp_path / "run"
    assert run_cli(*VAE)[0] == 0
    (run / "figures" / "samples_00000003.png").write_bytes(b"")
    code, error = run_cli(f"resume={run}", "trainer.epochs=3", folder=run)
    assert code == 0, error
    assert error.count("samples_00000003.png is left out of samples.gif: cannot identify") == 1
    assert Image.open(run / "figures" / "samples.gif").n_frames == 2
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"


class Notes(Tracker):
    def __init__(self):
        self.calls = []

    def log(self, step, scalars):
        self.calls.append((step, *scalars))

    def figure(self, step, name, path):
        assert Image.open(path).size > (100, 100)
        self.calls.append((step, name))


def test_several_trials_of_one_process_have_figures_of_their_own(tmp_path):
    drawn = []
    for seed in range(2):
        options = ["model=vae", "model.hidden=[16]", "data.limit=64", f"seed={seed}"]
        setup = Setups().of(config := composed(*options))
        hparams = setup.inputs_of(config)
        weights = setup.experiment.init_weights(hparams, root_key(seed))
        folder = tmp_path / str(seed)
        folder.mkdir()
        view = view_of(setup, hparams, folder)
        drawn.append((RunFigures(view, folder, Notes(), every=2), weights))
    for figures, weights in drawn:
        assert [figures.due(epoch) for epoch in (1, 2, 3, 4)] == [False, True, False, True]
        figures.after_epoch(10, weights)
    for figures, weights in drawn:
        figures.after_epoch(20, weights)
        figures.flush(25)
        assert figures.trackers.calls == [(20, "samples"), (25, "samples")]
    first, second = (tmp_path / seed / "figures" / "samples_00000010.png" for seed in "01")
    assert first.read_bytes() != second.read_bytes()


def test_a_folder_of_figures_that_cannot_be_made_costs_a_line(tmp_path, caplog):
    setup = Setups().of(config := composed("model=vae", "model.hidden=[16]", "data.limit=64"))
    hparams = setup.inputs_of(config)
    (tmp_path / "figures").write_text("a file")
    figures = RunFigures(view_of(setup, hparams, tmp_path), tmp_path, Notes(), every=1)
    figures.after_epoch(10, setup.experiment.init_weights(hparams, root_key(0)))
    figures.flush(10)
    (message,) = caplog.messages
    assert message.startswith("the figures cannot be drawn: FileExistsError")


@pytest.mark.slow
def test_figures_that_cannot_be_drawn_cost_a_line_each(run_cli, monkeypatch, tmp_path):
    def broken(error):
        def draw(*_):
            raise error

        return draw

    monkeypatch.setattr(classification_figures, "confusion_matrix", broken(ValueError("no colour")))
    monkeypatch.setattr(classification_figures, "sample_predictions", broken(UserError("no data")))
    code, error = run_cli("model=mlp", "model.hidden=[16]", *SHORT)
    assert code == 0, error
    assert "figures/confusion_matrix.png cannot be drawn: ValueError: no colour" in error
    assert "figures/sample_predictions.png cannot be drawn: UserError: no data" in error
    assert pictures(tmp_path / "run") == {"learning_curves"}
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


def test_a_picture_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "curves.png"
    path.write_bytes(b"an older one")
    figure = learning_curves([])
    figure.savefig = lambda *_, **__: (_ for _ in ()).throw(MemoryError)
    with pytest.raises(MemoryError):
        drawing.save(figure, path)
    assert path.read_bytes() == b"an older one"
    drawing.save(learning_curves([]), path)
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]
    assert Image.open(path).format == "PNG"


def test_kinds_that_are_drawn_during_training_say_so():
    kinds = ("classification", "regression", "labelling", "no such kind", *DRAWN_DURING_TRAINING)
    assert {kind for kind in kinds if figures_of(kind).during} == DRAWN_DURING_TRAINING


@pytest.mark.parametrize("option", ["model.latents=0", "loss=mse", "loss=non_saturating"])
def test_what_does_not_go_with_a_vae_is_said_in_a_line(run_cli, option):
    code, error = run_cli("model=vae", option, "debug=fast")
    assert code == 2
    said = error[error.index("error:") :]  # after what a first use of the data says
    assert len(said.strip().splitlines()) <= 2
    assert option.partition("=")[0] in said


def test_a_mosaic_keeps_the_order_of_the_images():
    images = np.arange(6.0).reshape(6, 1, 1, 1) / 5
    picture = mosaic(images, 3)[::2, ::2, 0]  # without the borders
    np.testing.assert_allclose(picture, [[0, 0.2, 0.4], [0.6, 0.8, 1.0]], rtol=1e-6)
