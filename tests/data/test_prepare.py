import importlib.util
import time

import numpy as np
import pytest

from experiments.data import prepare as program
from experiments.errors import UserError


def test_prepares_the_digits_and_describes_them(capsys, tmp_path):
    assert program.main(["digits", "--dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert str(tmp_path / "digits" / "1.0.0") in out
    for line in ("1,437 train, 360 test", "input_shape: [8, 8, 1]", "mean: [0.3054]"):
        assert line in out  # the mean of conf/data/digits.yaml


def test_a_misspelt_name(capsys):
    assert program.main(["mnits"]) == 2
    assert "did you mean 'mnist'" in capsys.readouterr().err


def test_without_tensorflow(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find(name)
    )
    assert program.main(["cifar100"]) == 2
    error = capsys.readouterr().err
    assert "needs TensorFlow" in error
    assert len(error.splitlines()) <= 2


def test_without_network():
    started = time.monotonic()
    with pytest.raises(UserError, match=r"no network: http://localhost:1/ does not answer"):
        program._check_network("http://localhost:1/")
    assert time.monotonic() - started < 10


def test_where_the_folder_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert program.main(["digits", "--dir", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_statistics():
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 5, 3), np.uint8)
    mean, std = program.statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)))
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)))
