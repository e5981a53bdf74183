import importlib.util
import time

import numpy as np
import pytest

from experiments.cli import prepare as program
from experiments.errors import UserError


def test_describes_the_digits(capsys):
    assert program.main(["digits"]) == 0
    out = capsys.readouterr().out
    for line in ("1,437 train, 360 test", "input_shape: [8, 8, 1]", "mean: [0.3054]"):
        assert line in out  # the mean of conf/data/digits.yaml


def test_describes_a_text(capsys, write_texts):
    write_texts("play", train=[("To be, or not to be", None)])
    assert program.main(["play"]) == 0
    assert capsys.readouterr().out.endswith(": 1 train\n")


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


def test_where_the_folder_cannot_be_written(monkeypatch, capsys, tmp_path):
    def download(name, directory):
        (directory / name).mkdir(parents=True)

    monkeypatch.setattr(program, "_download", download)
    (tmp_path / "file").write_text("")
    assert program.main(["cifar100", "--dir", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert program.main(["cifar100", "--dir", str(tmp_path / ("n" * 300))]) == 2
    assert "File name too long" in capsys.readouterr().err


def test_prepares_only_where_there_is_nothing_yet(monkeypatch, capsys, data_dir, write, pictures):
    def download(name, directory):
        assert directory == data_dir
        write(name, train=pictures(20), test=pictures(4))

    monkeypatch.setattr(program, "_download", download)
    assert program.main(["cifar100"]) == 0
    assert f"cifar100 1.0.0 in {data_dir}/cifar100/1.0.0: 20 train" in capsys.readouterr().out
    monkeypatch.undo()
    assert program.main(["cifar100", "--dir", str(data_dir)]) == 0


def test_statistics():
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 5, 3), np.uint8)
    mean, std = program.statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)))
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)))
