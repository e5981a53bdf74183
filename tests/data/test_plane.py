"""Points in the plane: the truth table, the clouds of a ring, and their figures."""

import numpy as np
import pytest

from experiments.core.config import build
from support import composed


def splits(*overrides):
    return build(composed(*overrides)["data"]).load()


def test_xor_is_the_truth_table_with_every_corner_equally_often():
    arrays = splits("data=xor").train.arrays
    rows = np.column_stack([arrays["sequence"], arrays["label"]])
    values, counts = np.unique(rows, axis=0, return_counts=True)
    assert values.tolist() == [[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]
    assert len(set(counts)) == 1


def test_the_ring_is_eight_clouds_at_equal_distances():
    arrays = splits("data=ring").train.arrays
    centres = np.array([arrays["sequence"][arrays["label"] == i].mean(0) for i in range(8)])
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 0.8, atol=0.01)
    sides = np.linalg.norm(centres - np.roll(centres, 1, axis=0), axis=1)
    np.testing.assert_allclose(sides, 2 * 0.8 * np.sin(np.pi / 8), atol=0.01)


@pytest.mark.parametrize(
    ("overrides", "figure"),
    [
        (["data=spirals", "model=mlp", "model.hidden=[4]"], "decision_boundary"),
        (["data=ring", "model=gan", "model.hidden=[4]", "data.examples=200"], "samples"),
        (["data=moons", "model=vae", "model.hidden=[4]", "model.likelihood=gaussian"], "samples"),
    ],
)
def test_what_was_learnt_of_a_plane_is_drawn(run_cli, tmp_path, overrides, figure):
    code, _ = run_cli(*overrides, "trainer.epochs=1", "logger=none", folders=False)
    assert code == 0
    assert (tmp_path / "run" / "figures" / f"{figure}.png").stat().st_size > 5000
