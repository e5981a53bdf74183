"""Arrays and tables of one's own: examples with a class, with numbers or with nothing."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.core.config import build, settled
from experiments.data.dataset import model_input
from experiments.errors import UserError
from support import composed

RNG = np.random.default_rng(0)
Y = np.arange(40) % 2


def data(name, path, *overrides):
    return build(composed(f"data={name}", f"data.path='{path}'", *overrides)["data"])


def whole(splits):
    """All examples of all splits, in the order of the splits."""
    parts = [getattr(splits, part).arrays for part in ("train", "validation", "test")]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture
def npz(tmp_path):
    """A function that writes an `.npz` file of these arrays."""

    def write(**arrays):
        np.savez(tmp_path / "x.npz", **arrays)
        return tmp_path / "x.npz"

    return write


@pytest.mark.parametrize(
    ("arrays", "shape", "name"),
    [
        ({"x": RNG.normal(3, 2, (40, 5)), "y": Y}, (5,), "sequence"),
        ({"inputs": RNG.normal(3, 2, (40, 6, 2)), "targets": Y}, (6, 2), "sequence"),
        ({"images": RNG.integers(0, 256, (40, 8, 6), np.uint8), "labels": Y}, (8, 6, 1), "image"),
        ({"images": RNG.random((40, 3, 8, 6)), "labels": Y[:, None]}, (8, 6, 3), "image"),
        ({"a": RNG.random((40, 4))}, (4,), "sequence"),
    ],
)
def test_what_arrays_are_is_told_by_names_and_shapes(npz, arrays, shape, name):
    config = data("arrays", npz(**arrays))
    splits, spec = config.load(), config.spec
    assert spec.input_shape == shape
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [28, 6, 6]
    train = splits.train.arrays
    assert {n: (a.shape[1:], a.dtype) for n, a in train.items()} == dict(spec.stored)
    seen = np.asarray(model_input(config.pipeline(train, None, train=False))[1])
    axes = 0 if len(shape) == 1 else tuple(range(len(shape)))
    np.testing.assert_allclose(seen.mean(axes), 0, atol=1e-3)
    np.testing.assert_allclose(seen.std(axes), 1, atol=1e-2)
    assert name in train


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (Y * 5 + 3, ("3", "8")),
        (Y * 2.0 - 1, ("-1", "1")),
        (np.array(["no", "yes"])[Y], ("no", "yes")),
        (Y > 0, ("false", "true")),
        (np.eye(2)[Y], ("0", "1")),
    ],
)
def test_labels_of_any_kind_become_classes(npz, labels, classes):
    config = data("arrays", npz(x=Y[:, None] + 0.5, y=labels))
    splits = config.load()
    assert (splits.class_names, config.spec.num_classes) == (classes, 2)
    arrays = whole(splits)
    np.testing.assert_array_equal(arrays["sequence"][:, 0] > 0, arrays["label"] == 1)


def test_numbers_are_scaled_by_the_training_examples_and_keep_their_unit(npz):
    y = np.linspace(100, 900, 40)
    path = npz(x_train=y[:25, None], y_train=y[:25], x_test=y[25:, None], y_test=y[25:])
    splits = data("arrays", path).load()
    test = splits.test.arrays
    scale = splits.found["target"]
    np.testing.assert_allclose(
        test["target"][:, 0] * scale["std"] + scale["mean"], y[25:], rtol=1e-5
    )
    source = data("arrays", path)
    np.testing.assert_allclose(source.decode(test["target"])[:, 0], y[25:], rtol=1e-5)
    np.testing.assert_array_equal(source.encode(y[25:, None])[1], test["sequence"])
    np.testing.assert_allclose(splits.train.arrays["target"].std(), 1, rtol=1e-5)
    np.testing.assert_allclose(test["unit"], scale["std"][0], rtol=1e-6)
    two = data("arrays", npz(x=y[:, None], y=np.stack([y, -y], 1)))
    assert (two.predicts, two.outputs) == ("regression", 2)
    assert "unit" not in two.load().train.arrays


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((40, 2)), "y": Y[:39]}, "40 inputs and 39 targets"),
        ({"a": np.ones((40, 2)), "b": Y}, "no inputs that can be told, only a, b"),
        ({"x": np.array([["a"], ["b"]])}, "the inputs are no numbers"),
        ({"x": np.array([[1.0], [np.nan]])}, "1 values of the inputs are no finite numbers"),
        ({"x": np.array([{}, {}])}, "it holds Python objects"),
        ({"x": np.ones((40, 2)), "y": np.full(40, np.nan)}, "the target is missing in all rows"),
        ({"x": np.ones((40, 2)), "y": [f"{i}" for i in range(40)]}, "too many for classes"),
    ],
)
def test_bad_arrays_end_in_one_line(npz, arrays, message):
    with pytest.raises(UserError, match=message):
        data("arrays", npz(**arrays)).load()


def test_bad_files_of_arrays_end_in_one_line(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "x.npy").write_bytes(b"")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    for name, message in {
        "x.npz": "cannot be read",
        "x.npy": "is no file of NumPy arrays",
        "t.csv": "is no file of NumPy arrays, .npz or .npy; a table is data=table",
        "none": "no such file",
    }.items():
        with pytest.raises(UserError, match=f"data.path=.*{name}.*{message}"):
            data("arrays", tmp_path / name).load()


PEOPLE = """\ufeffid,"height, cm",town,smokes,born,kind
1,170.5,Rome,true,2000-01-01,a
2,,Oslo,false,2000-01-03,b
3,181.5,,true,2000-01-02,a
4,NA,Rome,false,2000-01-04,
"""


def table(tmp_path, text, *overrides, name="t.csv", **options):
    path = tmp_path / name
    path.write_text(text, newline="\r\n", **options)
    return data("table", path, *overrides)


def test_columns_of_every_kind_become_numbers(tmp_path, caplog):
    text = PEOPLE + "".join(f"{i},170.5,Rome,true,2000-01-01,a\n" for i in range(9, 12))
    text += "".join(f"{i},181.5,Oslo,false,2000-01-03,b\n" for i in range(12, 15))
    config = table(tmp_path, text, "data.target=kind", "data.ignore=[id]", "data.held_out=0.3")
    splits = config.load()
    columns = {one["name"]: one for one in splits.found["columns"]}
    assert list(columns) == ["height, cm", "town", "smokes", "born"]
    assert columns["town"]["categories"] == ["Oslo", "Rome"]
    assert splits.class_names == ("a", "b")
    assert "left out, as kind is missing: 1" in caplog.text
    assert config.spec.input_shape == splits.train.arrays["sequence"].shape[1:]
    train = splits.train.arrays["sequence"]
    assert np.isfinite(train).all()
    scaled = train[:, [0, -1]]
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-6)


def test_a_number_is_scaled_by_training_rows_and_a_missing_one_is_their_mean(tmp_path):
    rows = "".join(f"{v},{i % 2}\n" for i, v in enumerate([10, 20, ""] * 12))
    config = table(tmp_path, "v,k\n" + rows, "data.target=k")
    arrays = whole(config.load())
    value, gone = arrays["sequence"].T
    assert set(np.unique(gone)) == {0, 1}
    assert (value[gone == 1] == 0).all()
    assert config.found is None
    (column,) = config.load().found["columns"]
    there = np.unique(value[gone == 0]) * column["std"] + column["mean"]
    np.testing.assert_allclose(there, [10, 20], rtol=1e-5)
    (seen, gone), (ten, there) = config.encode({"v": [None, 10.0]})[1]  # or a DataFrame
    assert (seen, gone, there) == (0, 1, 0)
    assert ten * column["std"] + column["mean"] == pytest.approx(10)


@pytest.mark.parametrize(
    ("text", "overrides", "options"),
    [
        ("v;k\n1,5;a\n", ["data.decimal=','"], {}),
        ("v\tk\n1.5\ta\n", [], {}),
        ('v,k\n"1,500.0",a\n', ["data.thousands=','"], {}),
        ("v,k\n1.5,\u00e9\n", ["data.encoding=latin1"], {"encoding": "latin1"}),
        ("v,k\n1.5,a\n?,a\n", ["data.missing=['?']"], {}),
    ],
)
def test_tables_are_read_however_they_are_written(tmp_path, text, overrides, options):
    header, *rows = text.splitlines(keepends=True)
    other = [row.replace("1", "2", 1).replace("a\n", "b\n").replace("\u00e9", "o") for row in rows]
    text = header + "".join([*rows, *other] * 10)
    config = table(tmp_path, text, "data.target=k", *overrides, **options)
    (column,) = config.load().found["columns"]
    assert {"name": "v", "missing": "?" in text}.items() <= column.items()
    assert {"mean", "std"} < set(column)


def test_the_type_of_the_target_decides_the_task(tmp_path):
    rows = "".join(f"{i},{i % 3},{i * 1.5},{'abc'[i % 3]}\n" for i in range(40))
    (tmp_path / "t.csv").write_text("x,few,number,text\n" + rows)
    for target, task in {
        "few": "classification",
        "number": "regression",
        "text": "classification",
    }.items():
        overrides = ["data=table", f"data.path={tmp_path}/t.csv", f"data.target={target}"]
        config = settled(composed(*overrides))
        assert config["objective"]["_target_"].endswith(task.capitalize())
        losses = {"classification": "cross_entropy", "regression": "mse"}
        assert config["loss"]["_target_"].endswith(losses[task])
    weighted = settled(composed(*overrides, "loss.class_weights=[1,2,3]"))
    assert weighted["loss"]["class_weights"] == [1, 2, 3]
    said = settled(composed(*overrides[:2], "data.target=few", "data.task=regression", "loss=mae"))
    assert said["objective"]["_target_"].endswith("Regression")
    assert said["loss"]["_target_"].endswith("mae")
    several = data("table", tmp_path / "t.csv", "data.target=[number,few]")
    assert (several.predicts, several.outputs) == ("regression", 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.target=nunber"], "no such column, only x, number.*did you mean 'number'"),
        (["data.target=gone"], "gone is missing in all rows"),
        (["data.target=mixed"], "row 41: column 'mixed' has 'oops' among numbers"),
        (["data.target=number", "data.features=[mixed]"], "row 41: column 'mixed' has 'oops'"),
        (["data.target=text", "data.task=regression"], "text of .* has 'a', no number"),
        (["data.target=same"], "nothing to predict"),
        (["data.target=number", "data.features=[same]"], "no column to predict number from"),
        (
            ["data.target=number", "data.features=[x]", "data.limit=99"],
            "data.limit is 99, but .* has 28 training",
        ),
    ],
)
def test_bad_tables_end_in_one_line(tmp_path, overrides, message):
    rows = "".join(
        f"{i},{i * 1.5},{'abc'[i % 3]},,{i if i < 39 else 'oops'},0.1\n" for i in range(40)
    )
    with pytest.raises(UserError, match=message):
        table(tmp_path, "x,number,text,gone,mixed,same\n" + rows, *overrides).load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,k\n1,2\n1,2,3\n", "Expected 2 columns, got 3"),
        (b"a,a\n1,2\n", "several columns a"),
        (b"a,k\n", "has no rows"),
        (b"", "cannot be read as a table"),
        (b"a,k\n1,\xe9\n", r"not in UTF-8 \(byte 6\); say data.encoding=latin1"),
        (b"PAR1 and no more", "cannot be read as a table"),
        (b"PK\x03\x04 of Excel", "is no CSV, TSV or Parquet file, but of Excel"),
    ],
)
def test_bad_files_of_tables_end_in_one_line(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        data("table", tmp_path / "t.csv", "data.target=k").load()


def test_a_table_without_names_is_said(tmp_path, caplog):
    with pytest.raises(UserError, match=r"data.target=kind: .* no such column, only 5.1, 3.5"):
        table(tmp_path, "5.1,3.5\n4.9,3.0\n", "data.target=kind").load()
    assert "its first row, which is numbers, is taken for names" in caplog.text


def test_parquet_is_read_as_csv_is(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    rows = [(i, "xyz"[i % 3], i % 2 == 0, f"{i % 2}") for i in range(40)]
    columns = dict(zip("abck", map(list, zip(*rows, strict=True)), strict=True))
    text = "".join(",".join(map(str, row)) + "\n" for row in [tuple("abck"), *rows])
    plain = table(tmp_path, text, "data.target=k").load()
    columns["b"] = pa.array(columns["b"]).dictionary_encode()
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    other = data("table", tmp_path / "t.parquet", "data.target=k").load()
    assert other.found == plain.found
    for name, array in plain.test.arrays.items():
        np.testing.assert_array_equal(array, other.test.arrays[name])


@pytest.mark.parametrize("kind", ["table", "arrays"])
def test_workers_and_resumed_runs_standardise_alike(tmp_path, npz, kind):
    """What is found anew, and what a run has written and read again, gives the same bits."""
    text = "".join(f"{x},{'abc'[i % 3]},{x * i}\n" for i, x in enumerate(RNG.normal(3, 2, 40)))
    (tmp_path / "t.csv").write_text("x,town,k\n" + text)
    arrays = {"x": RNG.normal(3, 2, (40, 6, 6, 1)), "y": RNG.normal(3, 2, 40)}
    path = tmp_path / "t.csv" if kind == "table" else npz(**arrays)
    target = ["data.target=k"] if kind == "table" else []
    first, anew = (data(kind, path, *target) for _ in range(2))
    found = json.loads(json.dumps(first.load().found))
    for other in (anew, dataclasses.replace(anew, found=found)):
        for name, array in whole(first.load()).items():
            np.testing.assert_array_equal(whole(other.load())[name], array)
        batch = first.load().train.arrays
        seen = [model_input(one.pipeline(batch, None, train=False))[1] for one in (first, other)]
        np.testing.assert_array_equal(*seen)


def test_a_run_keeps_the_scales_of_its_table(tmp_path, run_cli):
    """Later commands read other rows with them, and refuse classes that it has not learnt."""
    path, run = tmp_path / "t.csv", tmp_path / "run"
    path.write_text("v,k\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(40)))
    options = ["data=table", f"data.path={path}", "data.target=k", "data.batch_size=4"]
    options += ["model.hidden=[4]", "trainer.epochs=1", "logger=none", "trainer.figures=false"]
    assert run_cli(*options, folders=False)[0] == 0
    path.write_text("v,k\n" + "".join(f"{i * 10},b\n" for i in range(10)))
    again = ["mode=predict", f"checkpoint={run}"]
    assert run_cli(*again, folder=tmp_path / "p", folders=False)[0] == 0
    assert "p_a,p_b" in (tmp_path / "p/predictions.csv").read_text().replace('"', "")
    path.write_text("v,k\n" + "".join(f"{i},c\n" for i in range(10)))
    code, error = run_cli(*again, folder=tmp_path / "p", folders=False)
    assert (code, "examples of c, none of the classes that the run has learnt: a, b" in error) == (
        2,
        True,
    )


def test_an_autoencoder_learns_vectors_without_targets(npz, run_cli, tmp_path):
    """Twelve numbers that lie in a plane, from a code of two."""
    plane = RNG.normal(size=(240, 2)) @ RNG.normal(size=(2, 12))
    common = ["data=arrays", f"data.path={npz(x=plane)}", "model=autoencoder", "logger=none"]
    model = ["model.hidden=[16]", "model.latents=2", "optim.learning_rate=0.01", "data.limit=128"]
    code, error = run_cli(
        *common, *model, "trainer.epochs=20", folder=tmp_path / "run", folders=False
    )
    assert code == 0, error
    assert "cannot be drawn" not in error
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test/squared_error"] < 0.4  # 1 for the mean of all
    assert [p.name for p in (tmp_path / "run" / "figures").iterdir()] == ["learning_curves.png"]
