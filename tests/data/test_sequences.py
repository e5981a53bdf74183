"""Sequences: generated problems, text, tables and labelled texts."""

import jax
import numpy as np
import pytest

from experiments.core.config import build
from experiments.errors import UserError
from support import composed

KEY = jax.random.key(7)


def data(name, *overrides):
    return build(composed(f"data={name}", *overrides)["data"])


def examples(data, split="test", count=8):
    """Return the first examples of a split as the objective sees them."""
    stored = {name: array[:count] for name, array in getattr(data.load(), split).arrays.items()}
    return jax.tree.map(np.asarray, data.pipeline(stored, KEY, train=False))


def test_the_two_marked_numbers_add_up_to_the_target():
    made = examples(data("adding", "data.length=10"), count=50)
    value, mark = np.moveaxis(made["sequence"], -1, 0)
    np.testing.assert_array_equal(mark[:, :5].sum(1), 1)
    np.testing.assert_array_equal(mark[:, 5:].sum(1), 1)
    np.testing.assert_allclose((value * mark).sum(1), made["target"][:, 0], rtol=1e-6)
    assert value.min() >= 0
    assert value.max() <= 1


def test_what_is_to_be_copied_comes_after_the_delay():
    made = examples(data("copy", "data.length=3", "data.delay=4", "data.symbols=5"))
    tokens, target, weight = made["tokens"], made["target"], made["weight"]
    assert tokens.shape == target.shape == weight.shape == (8, 3 + 4 + 1 + 3)
    symbols = tokens[:, :3]
    assert set(symbols.ravel()) <= {1, 2, 3, 4, 5}
    np.testing.assert_array_equal(tokens[:, 7], 6)
    np.testing.assert_array_equal(target[:, -3:], symbols)
    assert not np.delete(tokens[:, 3:], 4, axis=1).any()
    np.testing.assert_array_equal(weight, [[0] * 8 + [1] * 3] * 8)
    answer = examples(data("copy", "data.length=3", "data.target=answer", "data.symbols=5"))
    np.testing.assert_array_equal(answer["target"], answer["tokens"][:, :3])


def test_a_sine_goes_on_as_it_began():
    made = examples(data("sine", "data.noise=0.0", "data.target=sequence"))
    wave = np.concatenate([made["sequence"], made["target"]], axis=1)[..., 0]
    # of a sine x[t+1] + x[t-1] = 2 cos(ω) x[t]
    ratio = (wave[:, 2:] + wave[:, :-2]).sum(1) / wave[:, 1:-1].sum(1)
    np.testing.assert_allclose(
        wave[:, 2:] + wave[:, :-2], ratio[:, None] * wave[:, 1:-1], atol=2e-4
    )
    given = examples(data("sine", "data.given=parameters"))
    amplitude, _, phase = given["sequence"].T
    assert ((amplitude >= 0.5) & (amplitude <= 1)).all()
    first = amplitude * np.sin(2 * np.pi * phase)
    np.testing.assert_allclose(given["target"][:, 0], first, atol=1e-5)


def test_problems_are_new_in_training_and_the_same_in_evaluation():
    adding = data("adding", "data.length=4", "data.examples=16", "data.held_out=8")
    train = adding.load().train.arrays
    first, again = (adding.pipeline(train, KEY, train=True)["target"] for _ in range(2))
    other = adding.pipeline(train, jax.random.key(8), train=True)["target"]
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).all()
    validation, test = examples(adding, "validation"), examples(adding, "test")
    np.testing.assert_array_equal(validation["target"], examples(adding, "validation")["target"])
    assert (validation["target"] != test["target"]).all()


@pytest.fixture
def play(write_texts):
    """A prepared text of 240, 30 and 30 characters."""
    text = ("To be, or not to be, that is the question.\n" * 8)[:300]
    splits = {"train": text[:240], "validation": text[240:270], "test": text[270:]}
    write_texts("play", **{split: [(part, None)] for split, part in splits.items()})
    return splits


def test_streams_of_text_go_on_from_batch_to_batch(play):
    sizes = ("data.batch_size=4", "data.length=10", "data.num_classes=null")
    text = data("tiny_shakespeare", "data.name=play", *sizes, "data.eval_length=12")
    splits = text.load()
    characters = np.array(splits.class_names)
    batches = splits.train.arrays["text"].reshape(-1, 4, 11)
    assert splits.train.ordered
    for stream in range(4):
        windows = ["".join(characters[row]) for row in batches[:, stream]]
        whole = "".join(window[:-1] for window in windows) + windows[-1][-1]
        assert whole == play["train"][stream * 59 :][: len(whole)]
        assert len(windows) == 5
    np.testing.assert_array_equal(splits.train.arrays["restart"], np.arange(20) < 4)
    validation = ["".join(characters[row]) for row in splits.validation.arrays["text"]]
    assert validation == [play["validation"][:13], play["validation"][12:25]]
    batch = text.pipeline(splits.train.arrays, train=True)
    np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["target"][:, :-1])
    assert text.spec.input_shape == (10, len(characters))


def test_windows_of_text_without_streams(play):
    sizes = ("data.streams=null", "data.length=20", "data.num_classes=null", "data.limit=7")
    train = data("tiny_shakespeare", "data.name=play", *sizes).load().train
    assert not train.ordered
    assert train.arrays["text"].shape == (7, 21)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.length=240"], "training text has 240 characters"),
        (["data.length=60"], r"data.streams=4: pieces of 59 characters"),
        (["data.streams=3"], "data.streams=3 and data.batch_size=4"),
        (["data.num_classes=65"], "set data.num_classes=17"),
        (["data.path=x.txt"], "either data.name .* or data.path"),
        (["data.name=null", "data.path=x.txt"], "data.path=x.txt: no such file"),
    ],
)
def test_bad_texts_end_in_one_line(play, overrides, message):
    base = ["data.name=play", "data.batch_size=4", "data.num_classes=null"]
    with pytest.raises(UserError, match=message):
        data("tiny_shakespeare", *base, *overrides).load()


def test_a_byte_order_mark_is_no_character(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("ab\r\n" * 200, encoding="utf-8-sig", newline="")
    splits = data("text", f"data.path={path}", "data.length=9", "data.batch_size=2").load()
    assert splits.class_names == ("\n", "a", "b")


def test_a_file_is_cut_into_training_validation_and_test(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("abcde" * 40, encoding="utf-8")
    options = ("data.length=9", "data.batch_size=2", "data.held_out=0.1", "data.eval_length=6")
    splits = data("text", f"data.path={path}", *options).load()
    assert splits.class_names == tuple("abcde")
    assert splits.train.arrays["text"].shape == (2 * (159 // 2 // 9), 10)
    assert len(splits.validation) == len(splits.test) == 19 // 6


@pytest.fixture
def table(tmp_path):
    """A hundred rows, of which the last 20 % are far from the others."""
    rows = [f"{i},{i % 7},{1000 if i >= 80 else 10 + i % 5},word" for i in range(100)]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["time,wind,heat,note", *rows, ""]))
    return path


def test_a_table_is_scaled_by_its_training_rows_alone(table):
    options = ("data.column=heat", "data.inputs=[wind,heat]", "data.length=3", "data.horizon=2")
    config = data("timeseries", f"data.path={table}", *options, "data.held_out=0.2")
    splits = config.load()
    train = splits.train.arrays
    values = np.array([[i % 7, 10 + i % 5] for i in range(60)])
    scaled = (values - values.mean(0)) / values.std(0)
    assert train["sequence"].shape == (60 - 5 + 1, 3, 2)
    np.testing.assert_allclose(train["sequence"][4], scaled[4:7], rtol=1e-5)
    np.testing.assert_allclose(train["target"][4], scaled[7:9, 1], rtol=1e-5)
    np.testing.assert_allclose(train["unit"], values.std(0)[1], rtol=1e-6)
    assert len(splits.validation) == len(splits.test) == 20 - 5 + 1
    far = (1000 - values.mean(0)[1]) / values.std(0)[1]
    np.testing.assert_allclose(splits.test.arrays["target"], far, rtol=1e-5)
    assert splits.validation.arrays["target"].max() < 2
    assert config.spec.input_shape == (3, 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.column=note"], "row 2: column 'note' has 'word', which is no number"),
        (["data.column=hest"], "no column 'hest', only time, .*did you mean 'heat'"),
        (["data.column=heat", "data.length=30"], "validation split .* has 20 rows, fewer than"),
        (["data.path=none.csv"], "data.path=none.csv: no such file"),
    ],
)
def test_bad_tables_end_in_one_line(table, overrides, message):
    base = [f"data.path={table}", "data.held_out=0.2"]
    with pytest.raises(UserError, match=message):
        data("timeseries", *base, *overrides).load()


ROWS = [f"{i},{i % 7},{i % 5}\n" for i in range(40)]


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("a,b,c", "5,5,7,10", "Expected 3 columns, got 4: 5,5,7,10"),
        ("a,b,c", "5,10", "Expected 3 columns, got 2: 5,10"),
        ("a,c,c", "5,5,0", "has 2 columns 'c'"),
        ("a,b,c", "5,5,1_0", "row 7: column 'c' has '1_0', which is no number"),
        ("a,b,c", "5,5,", "row 7: column 'c' has '', which is no number"),
        ("a,b,c", "5,5,nan", "row 7: column 'c' has 'nan', which is no number"),
        ("a,b,c", '5,5,"10', "row 7: column 'c' has '10', which is no number"),
        ("a,b,c", "5,5,3.5e38", "column 'c' has values .* float32"),
        ("a;b;c", "5;5;0", "with commas between them: Expected 1 columns, got 3"),
    ],
)
def test_a_table_whose_values_would_change_is_refused(tmp_path, header, row, message):
    (tmp_path / "t.csv").write_text("".join([header, "\n", *ROWS[:5], row, "\n", *ROWS[6:]]))
    with pytest.raises(UserError, match=message):
        data("timeseries", f"data.path={tmp_path}/t.csv", "data.length=3").load()


def test_what_editors_add_to_a_table_is_no_value(tmp_path):
    """A byte-order mark, spaces, line breaks in quotation marks, empty lines, ends of lines."""
    path = tmp_path / "t.csv"
    config = data("timeseries", f"data.path={path}", "data.length=3")
    path.write_text("a,b,c\n" + "".join(ROWS))
    plain = config.load().train.arrays
    rows = [f'{i},"x\ny", {row.split(",")[2]}\n' for i, row in enumerate(ROWS)]
    path.write_text("\ufeffa, b, c \n" + "".join(rows) + "\n\n", newline="\r\n")
    for name, array in config.load().train.arrays.items():
        np.testing.assert_array_equal(array, plain[name])


@pytest.mark.parametrize("values", [["0.1"], ["0.1", "0.10000000000000002"]])
def test_a_column_that_is_constant_but_for_rounding_is_only_shifted(tmp_path, caplog, values):
    numbers = [*(values * 35)[:35], "0.6", "0.6", "0.6", "0.6", "0.6"]
    (tmp_path / "t.csv").write_text("\n".join(["a", *numbers]))
    splits = data("timeseries", f"data.path={tmp_path}/t.csv", "data.length=3").load()
    assert np.abs(splits.train.arrays["target"]).max() < 1e-15
    assert splits.train.arrays["unit"][0] == 1
    np.testing.assert_allclose(splits.test.arrays["target"][-1], 0.5)
    assert caplog.text.count("column 'a' is constant") == 1


def test_differences_too_small_for_float32_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("\n".join(["a", *(f"{i}e-200" for i in range(40))]))
    with pytest.raises(UserError, match="differences beyond those that float32 holds"):
        data("timeseries", f"data.path={tmp_path}/t.csv", "data.length=3").load()


@pytest.mark.parametrize("name", ["text", "timeseries"])
def test_a_path_of_any_kind_ends_in_one_line(tmp_path, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, reason in {
        "~nobody-of-this-name/x": "no such file",
        tmp_path: "is a directory",
        tmp_path / "loop": "too many levels of symbolic links",
        tmp_path / ("n" * 300): "file name too long",
    }.items():
        with pytest.raises(UserError, match=f"data.path={path}: {reason}"):
            data(name, f"data.path='{path}'").load()


def test_reviews_that_are_not_read_in_full_are_counted(write_texts, caplog):
    write_texts("imdb_reviews", train=[("a b c d", 1), ("да", 0)] * 5, test=[("a", 1)])
    with caplog.at_level("INFO"):
        data("imdb_reviews", "data.length=3").load()
    assert "10 training texts 5 are cut off after data.length=3 words, and 5 have" in caplog.text


def test_reviews_become_the_numbers_of_common_words(write_texts):
    good, bad = ("A good, GOOD film", 1), ("a bad film!", 0)
    write_texts("imdb_reviews", train=[good, bad] * 10, test=[("good awful film", 1)])
    splits = data("imdb_reviews", "data.vocabulary=4", "data.length=3").load()
    assert (len(splits.train), len(splits.validation)) == (18, 2)
    test = {name: array[0] for name, array in splits.test.arrays.items()}
    assert test["lengths"] == 3
    assert test["label"] == 1
    good_token, unknown, film = test["tokens"]
    assert unknown == 0
    assert len({good_token, unknown, film}) == 3
    train = splits.train.arrays
    short = train["label"] == 0
    np.testing.assert_array_equal(train["lengths"][short], 3)
    assert (train["tokens"][:, 0] == train["tokens"][0, 0]).all()  # "a" in each


def test_the_rows_of_an_image_are_the_steps_of_a_sequence(write, pictures):
    images = pictures(4, size=6, channels=3)
    write("toy", train=images * 5, test=images)
    size = ["data.input_shape=[6,6,3]", "data.num_classes=3", "data.mean=null", "data.std=null"]
    rows = data("mnist_rows", "data.name=toy", *size)
    assert rows.spec.input_shape == (6, 18)
    made = examples(rows, count=4)
    expected = np.stack(images).reshape(4, 6, 18) / 127.5 - 1
    np.testing.assert_allclose(made["sequence"], expected, atol=1e-6)
    assert set(made) == {"sequence", "label"}
