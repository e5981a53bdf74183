"""mode=predict on new files: pictures, arrays and tables that are in no data set."""

import csv
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from experiments.core.config import build
from experiments.data.reading import unseen as module
from experiments.data.reading.unseen import splits_of, unseen
from experiments.errors import UserError
from support import composed

RNG = np.random.default_rng(0)
QUICK = ["logger=none", "trainer.figures=false", "trainer.epochs=1", "model.hidden=[4]"]
OWN = ["data.batch_size=8", *QUICK]


def ignore(*_):
    """A warning that nobody reads."""


@pytest.fixture
def predict(run_cli, tmp_path):
    """Predict by the run in the folder `run`: the rows of the table, what was logged."""

    def call(*arguments, code=0):
        found, error = run_cli(
            *("mode=predict", f"checkpoint={tmp_path}/run", *arguments),
            folder=tmp_path / "out",
            folders=False,
        )
        assert found == code, error
        if code:
            return error
        with (tmp_path / "out/predictions.csv").open(newline="") as file:
            return list(csv.DictReader(file)), error

    return call


def numbers(rows, prefix):
    names = [name for name in rows[0] if name.startswith(prefix)]
    return np.array(sorted([float(row[name]) for name in names] for row in rows))


@pytest.mark.slow
def test_new_pictures_get_what_the_run_says_of_them(run_cli, predict, tmp_path):
    images = RNG.integers(0, 256, (24, 6, 6), np.uint8)
    for i, image in enumerate(images):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    own = ["data=folder", f"data.path={tmp_path}/photos", f"data.cache_dir={tmp_path}/cache"]
    code, error = run_cli(*own, *OWN, "loss.class_weights=balanced", folders=False)
    assert code == 0, error
    known, _ = predict("predict.splits=[train,validation,test]")
    (tmp_path / "photos").rename(tmp_path / "new")  # what the run has learnt from is gone
    (tmp_path / "new/a/bad.png").write_bytes(b"\x89PNG")
    rows, error = predict(f"input={tmp_path}/new")
    assert [row["file"] for row in rows] == sorted(
        str(path) for path in (tmp_path / "new").rglob("[0-9]*.png")
    )
    assert f"{tmp_path}/new/a/bad.png cannot be read" in error
    np.testing.assert_allclose(numbers(rows, "p_"), numbers(known, "p_"), rtol=1e-5)
    first = Image.fromarray(images[0])
    first.convert("RGBA").save(tmp_path / "1.webp", lossless=True)
    first.resize((12, 12)).save(tmp_path / "2.bmp")
    (one, _), _ = predict(f"input='{tmp_path}/[12].*'", "predict.top_k=2")
    same = next(row for row in rows if row["file"].endswith("00.png"))
    assert one["predicted"] == one["class_1"] == same["predicted"]
    for rank in "12":
        probability = float(same[f"p_{one[f'class_{rank}']}"])
        assert float(one[f"probability_{rank}"]) == pytest.approx(probability, rel=1e-5)
    error = predict(f"input={tmp_path}/new/a/bad.png", code=2)
    assert f"input={tmp_path}/new/a/bad.png: none of its 1 pictures can be read" in error


def test_rows_of_a_new_table_get_numbers_in_the_unit_of_the_target(run_cli, predict, tmp_path):
    count = 60
    size = RNG.normal(50, 9, count)
    days = np.datetime64("2024-01-01") + RNG.integers(0, 300, count)
    table = pa.table(
        {
            "size": [None if i % 9 == 5 else value for i, value in enumerate(size)],
            "kind": [("x", "y", None)[i % 3] for i in range(count)],
            "open": [i % 4 == 0 for i in range(count)],
            "since": pa.array(days),
            "price": 1000 * size + 5e5,
        }
    )
    pa.csv.write_csv(table, tmp_path / "old.csv")
    own = ["data=table", f"data.path={tmp_path}/old.csv", "data.target=price"]
    code, error = run_cli(*own, *OWN, folders=False)
    assert code == 0, error
    known, _ = predict("predict.splits=[train,validation,test]")
    target = numbers(known, "target")[:, 0]
    np.testing.assert_allclose(target, np.sort(table["price"].to_numpy()), rtol=1e-6)
    errors = np.array([abs(float(row["target"]) - float(row["predicted"])) for row in known])
    test = [row["split"] == "test" for row in known]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert errors[test].mean() == pytest.approx(summary["test/absolute_error"], rel=1e-4)
    assert [summary["units"][n] for n in ("absolute_error", "loss")] == ["of price", "standardised"]
    (tmp_path / "old.csv").unlink()
    new = table.select(["since", "open", "size", "kind"])
    pa.csv.write_csv(new, tmp_path / "new.csv", pa.csv.WriteOptions(delimiter=";"))
    rows, _ = predict(f"input={tmp_path}/new.csv")
    assert [int(row["index"]) for row in rows] == list(range(count))
    np.testing.assert_allclose(numbers(rows, "predicted"), numbers(known, "predicted"), rtol=1e-5)

    found = json.loads((tmp_path / "run/data.json").read_text())
    source = replace(build(composed(*own)["data"]), found=found)
    inputs = [part for _, part in unseen(source, str(tmp_path / "new.csv"), ignore)(count)]
    parquet.write_table(table, tmp_path / "new.parquet")
    parts = [part for _, part in unseen(source, str(tmp_path / "new.*"), ignore)(16)]
    assert [len(part) for part in parts] == 2 * [16, 16, 16, 12]
    np.testing.assert_array_equal(np.concatenate(parts), np.concatenate(2 * inputs))
    (tmp_path / "bad.csv").write_text("size,kind,open,since\n3,x,true,2024-01-01\nno,x,true,\n")
    with pytest.raises(UserError, match=r"as a table: .*Row #3.*invalid value 'no'"):
        list(unseen(source, str(tmp_path / "bad.csv"), ignore)(16))
    parquet.write_table(new.rename_columns(["since", "open", "sise", "kind"]), tmp_path / "b")
    with pytest.raises(UserError, match=r"has no column 'size', from which the run .*'sise'"):
        list(unseen(source, str(tmp_path / "b"), ignore)(16))


@pytest.mark.slow
def test_an_autoencoder_gives_errors_and_codes(run_cli, predict, tmp_path, data_home):
    model = ["model=autoencoder", "model.latents=3", "data.limit=64"]
    code, error = run_cli(*model, *QUICK)
    assert code == 0, error
    known, _ = predict("predict.splits=[test]")
    source = build(composed(*data_home)["data"])
    np.save(tmp_path / "x.npy", source.load().test.arrays["image"])
    rows, _ = predict(f"input={tmp_path}/x.npy")
    assert list(rows[0])[-3:] == ["code_1", "code_2", "code_3"]
    for prefix in ("squared_error", "code_"):
        np.testing.assert_allclose(numbers(rows, prefix), numbers(known, prefix), rtol=1e-5)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    mean = numbers(rows, "squared_error").mean()
    assert mean == pytest.approx(summary["test/squared_error"], rel=1e-4)


def test_no_more_is_read_than_a_batch(tmp_path, data_home, monkeypatch):
    """A million pictures take as much memory as a few; so does a large array."""
    source = build(composed(*data_home)["data"])
    for i in range(12):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"{i}.png")
    read = []
    original = module.decoded
    monkeypatch.setattr(
        module, "decoded", lambda path, side: read.append(path) or original(path, side)
    )
    batches = unseen(source, str(tmp_path), ignore)(5)
    assert len(next(batches)[1]) == 5 == len(read)
    assert [len(inputs) for _, inputs in batches] == [5, 2]
    images = RNG.integers(0, 256, (7, 8, 8, 1), np.uint8)
    for name, array in (("c", images), ("fortran", np.asfortranarray(images))):
        np.save(tmp_path / f"{name}.npy", array)
        np.savez_compressed(tmp_path / f"{name}.npz", x_test=array)
    for path in (*tmp_path.glob("*.npy"), *tmp_path.glob("*.npz")):
        parts = [inputs for _, inputs in unseen(source, str(path), ignore)(3)]
        assert [len(part) for part in parts] == [3, 3, 1]
        np.testing.assert_array_equal(np.concatenate(parts), images)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "c.npy").read_bytes()[:-9])
    batches = unseen(source, str(tmp_path / "cut.npy"), ignore)(3)
    next(batches)
    with pytest.raises(UserError, match="is no file of NumPy arrays: it ends too early"):
        list(batches)


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        ("digits", "nothing", "no such file or directory"),
        ("digits", "*.jpg", "no file has such a name"),
        ("digits", "empty", "is a folder without pictures"),
        ("digits", "x.csv", "has no pictures or arrays"),
        ("digits", "two.npz", "which are the inputs is not clear: it has a, b"),
        ("digits", "float.npy", "has float64 of 8x8; this run has learnt images in bytes"),
        ("digits", "text.npy", "not all of its values are finite numbers"),
        ("digits", "broken.npz", "is no file of NumPy arrays: File is not a zip file"),
        ("sine", "x.csv", "this run has learnt from no pictures and no table"),
    ],
)
def test_what_cannot_be_read_is_said(data, name, message, tmp_path, data_home):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    np.save(tmp_path / "float.npy", RNG.random((3, 8, 8)))
    np.save(tmp_path / "text.npy", np.array(["a"]))
    (tmp_path / "broken.npz").write_bytes(b"PK")
    own = data_home if data == "digits" else []
    source = build(composed(f"data={data}", *own)["data"])
    splits_of(source)
    with pytest.raises(UserError) as caught:
        list(unseen(source, str(tmp_path / name), ignore)(2))
    assert message in str(caught.value)


def test_input_is_for_predictions(run_cli):
    code, error = run_cli("input=photos")
    wanted = "error: input= goes with mode=predict and inspect, not with mode=train\n"
    assert (code, error) == (2, wanted)
