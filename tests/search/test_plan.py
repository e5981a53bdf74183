"""Plans of sweep files and command lines are checked whole, before anything is trained."""

import contextlib
from pathlib import Path

import pytest
import yaml

from experiments.errors import UserError
from experiments.search.actions import begin
from experiments.search.plan import plan_of_arguments, plan_of_file
from experiments.search.readers import read_sweep_file
from support import ROOT

CONFIG = ROOT / "conf"


def lines_of(error: UserError, path: Path) -> dict[int, str]:
    """Return the complaints of an error about `path` by line number."""
    found = {}
    for line in str(error).splitlines():
        assert line.startswith(f"{path}:")
        number, _, text = line.removeprefix(f"{path}:").partition(": ")
        found[int(number)] = text
    return found


def test_every_mistake_is_named_with_its_line(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "program: run.py\n"
        "methd: random\n"
        "run_cap: 0\n"
        "metric:\n"
        "  name: test/accuracy\n"
        "  gaol: maximize\n"
        "parameters:\n"
        "  optim.learning_rate:\n"
        "    distribution: log_uniform_values\n"
        "    min: 1e-5\n"
        "    max: 1.0e-2\n"
        "  optim.weight_decay: {distribution: log_uniform_values, min: 0.0, max: 1.0}\n"
        "  optim.b1: 0.9\n"
        "  optim.b1: {value: 0.9}\n"
    )
    with pytest.raises(UserError) as error:
        read_sweep_file(path)
    wanted = {
        2: "did you mean 'method'",
        3: "run_cap=0",
        5: "the validation split decides",
        6: "did you mean 'goal'",
        10: "write 1.0e-5",
        12: "must lie above 0",
        14: "given twice",
    }
    found = lines_of(error.value, path)
    assert found.keys() == wanted.keys()
    for line, words in wanted.items():
        assert words in found[line]


def test_paths_choices_and_values_are_held_against_the_config(tmp_path):
    path = tmp_path / "bad.yaml"
    head = "run_cap: 4\nparameters:\n"
    path.write_text(
        f"{head}  optim.learning_rte: {{min: 0.1, max: 0.2}}\n  model: {{values: [mpl]}}\n"
    )
    with pytest.raises(UserError) as error:
        plan_of_file(read_sweep_file(path), [], {}, CONFIG)
    assert lines_of(error.value, path).keys() == {3, 4}
    assert "'optim.learning_rate'" in str(error.value)
    assert "'mlp'" in str(error.value)
    path.write_text(
        f"{head}  optim.l2: {{values: [0.0, -1.0]}}\n  trainer.epochs: {{values: [1.5]}}\n"
    )
    with pytest.raises(UserError) as error:
        plan_of_file(read_sweep_file(path), [], {}, CONFIG)
    assert "optim.l2=-1.0" in str(error.value)
    assert "trainer.epochs=1.5" in str(error.value)


def test_a_budget_must_be_given_and_settings_be_known(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("parameters:\n  optim.learning_rate: {min: 0.1, max: 0.2}\n")
    file = read_sweep_file(path)
    with pytest.raises(UserError, match="n_trials="):
        plan_of_file(file, [], {}, CONFIG)
    with pytest.raises(UserError, match="did you mean 'random'"):
        plan_of_file(file, [], {"n_trials": 2, "method": "randm"}, CONFIG)
    with pytest.raises(UserError, match="a grid over a range needs a budget"):
        plan_of_file(file, [], {"method": "grid"}, CONFIG)
    with pytest.raises(UserError, match="holds for a whole process"):
        plan_of_arguments(["trainer.matmul_precision=high,highest"], {}, CONFIG)
    with pytest.raises(UserError, match="did you mean cluster=slurm"):
        plan_of_file(file, [], {"n_trials": 2, "cluster": {"name": "local", "time": 3}}, CONFIG)


def test_the_metric_decides_which_epoch_is_best(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "run_cap: 2\nmetric: {name: val/loss}\nparameters:\n  optim.b1: {values: [0.8, 0.9]}\n"
    )
    plan = plan_of_file(read_sweep_file(path), ["seed=3"], {}, CONFIG)
    assert (plan.metric, plan.goal, plan.seed) == (["val/loss"], ["minimize"], 3)
    assert plan.overrides == ["seed=3", "trainer.monitor=loss", "trainer.monitor_mode=min"]
    for metric, goal in (("loss", "minimize"), ("macro_f1", "maximize")):
        plan = plan_of_arguments(["seed=1,2", f"trainer.monitor={metric}"], {}, CONFIG)
        assert (plan.metric, plan.goal) == ([f"val/{metric}"], [goal])


def test_a_metric_that_trials_do_not_have_is_named(tmp_path):
    path = tmp_path / "sweep.yaml"

    def complaints(name: str, models: str) -> str:
        path.write_text(
            f"run_cap: 2\nmetric: {{name: val/{name}, goal: maximize}}\n"
            f"parameters:\n  model: {{values: {models}}}\n"
        )
        with pytest.raises(UserError) as error:
            plan_of_file(read_sweep_file(path), [], {}, CONFIG)
        return str(error.value)

    assert complaints("acc", "[mlp]") == (
        f"{path}:2: metric=val/acc: trials with model=mlp have no such metric; "
        "did you mean 'accuracy'?"
    )
    of_families = complaints("accuracy", "[mlp, vae]")  # the one has it, the other does not
    assert "model=mlp" not in of_families
    assert "model=vae have no such metric; there are elbo, kl, loss" in of_families
    with pytest.raises(UserError, match="monitor=f1: its trials have no such metric"):
        plan_of_arguments(["seed=1,2", "trainer.monitor=f1"], {}, CONFIG)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            "{distribution: q_log_uniform_values, min: 1, max: 64, q: 8}",
            "rounded to multiples of 8",
        ),
        ("{distribution: q_uniform, min: -1, max: 64, q: 1}", "at least 1"),  # -1 is: all data
        ("{min: -1, max: 64}", "at least 1"),
    ],
)
def test_a_range_that_reaches_a_batch_of_nothing_is_refused(tmp_path, entry, words):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"run_cap: 2\nparameters:\n  data.batch_size: {entry}\n")
    with pytest.raises(UserError, match=f"data.batch_size=0: .*{words}"):
        plan_of_file(read_sweep_file(path), [], {}, CONFIG)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("optim.accumulate: {min: 1, max: 50}", "optim.accumulate=50: the run has 4 steps"),
        ("data.batch_size: {values: [16, 10000]}", "data.batch_size=10000 does not go with 256"),
        ("data.batch_size: {values: [16, 200]}, optim.accumulate: {value: 17}", "has 16 steps"),
        ("trainer.epochs: {values: [1, 2]}, optim.accumulate: {value: 9}", "has 8 steps"),
        ("data.limit: {values: [64, 9999]}", "data.limit is 9999, but 'digits' has 1293"),
        ("freeze: {values: [null, nothing]}", "freeze: no weight is called nothing"),
        ("freeze: {values: [layers.5]}, model.hidden: {values: [[8], [4]]}", "called layers.5"),
    ],
)
def test_values_that_no_trial_could_have_are_refused(tmp_path, parameters, words):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"run_cap: 2\nparameters: {{{parameters}}}\n")
    given = {"data.limit=256", "data.batch_size=64", "trainer.epochs=1", "model=mlp"}
    overrides = sorted(one for one in given if one.partition("=")[0] not in parameters)
    with pytest.raises(UserError, match=words):
        plan_of_file(read_sweep_file(path), overrides, {}, CONFIG)


def test_a_value_that_goes_with_some_of_the_others_is_drawn(tmp_path):
    path = tmp_path / "sweep.yaml"
    for parameters, overrides in {
        "data.batch_size: {values: [16, 32]}, optim.b1: {min: 0.1, max: 0.2}": ["data.limit=64"],
        "data.limit: {values: [16, 64]}, data.batch_size: {values: [16, 64]}": [],
        "trainer.epochs: {min: 1, max: 9}, optim.accumulate: {min: 1, max: 9}": [
            *("data.limit=64", "data.batch_size=64")
        ],
        "freeze: {values: [hidden.1]}, model.hidden: {values: [[8, 8], [8, 4]]}": ["model=mlp"],
    }.items():
        path.write_text(f"run_cap: 2\nparameters: {{{parameters}}}\n")
        plan_of_file(read_sweep_file(path), overrides, {}, CONFIG)


def test_a_sweep_file_may_name_own_data_that_need_several_keys(tmp_path):
    rows = "".join(f"{i},{i % 2},{'ab'[i % 2]}\n" for i in range(40))
    (tmp_path / "t.csv").write_text("x,y,kind\n" + rows)
    parameters = f"data: {{value: table}}, data.path: {{value: {tmp_path}/t.csv}}"
    path, sizes = tmp_path / "sweep.yaml", "data.batch_size: {values: [4, 8]}"
    for targets, wrong in (("[kind, y]", None), ("[kind, knd]", "data.target=knd.* mean 'kind'")):
        own = f"{parameters}, data.target: {{values: {targets}}}, {sizes}"
        path.write_text(f"run_cap: 2\nparameters: {{{own}}}\n")
        with pytest.raises(UserError, match=wrong) if wrong else contextlib.nullcontext():
            plan_of_file(read_sweep_file(path), [], {}, CONFIG)


def test_a_goal_against_the_sense_of_its_metric_is_questioned(tmp_path, caplog):
    path = tmp_path / "sweep.yaml"
    for metric, better in (("accuracy", "maximize"), ("loss", "minimize")):
        for goal in ("maximize", "minimize"):
            path.write_text(
                f"run_cap: 2\nmetric: {{name: val/{metric}, goal: {goal}}}\n"
                "parameters:\n  optim.b1: {values: [0.8, 0.9]}\n"
            )
            caplog.clear()
            assert plan_of_file(read_sweep_file(path), [], {}, CONFIG).goal == [goal]
            assert (f"say goal: {better}" in caplog.text) == (goal != better)


def test_an_override_settles_a_parameter_of_the_file():
    file = read_sweep_file(ROOT / "sweeps" / "lenet5_lr_wd.yaml")
    plan = plan_of_file(file, ["model=mlp", "optim.weight_decay=0.1"], {}, CONFIG)
    assert plan.parameters.keys() == {"optim", "optim.learning_rate"}
    assert plan.overrides == ["model=mlp", "optim.weight_decay=0.1"]


def test_an_override_may_be_of_what_the_file_chooses():
    file = read_sweep_file(ROOT / "sweeps" / "lenet5_lr_wd.yaml")
    assert plan_of_file(file, ["model.pooling=max"], {}, CONFIG).overrides == ["model.pooling=max"]


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_sweep_files_are_valid_and_run_as_w_and_b_runs_them(path):
    plan = plan_of_file(read_sweep_file(path), [], {}, CONFIG)
    assert plan.n_trials > 1
    content = yaml.safe_load(path.read_text())
    assert content["program"] == "run.py"
    assert content["command"] == ["${env}", "python", "${program}", "${args_no_hyphens}"]


def test_finite_lists_are_a_full_grid_but_with_a_budget(caplog):
    arguments = ["optim=adam,sgd", "optim.learning_rate=0.1,0.01,0.001"]
    plan = plan_of_arguments(arguments, {}, CONFIG)
    assert (plan.method, plan.n_trials) == ("grid", 6)
    assert not caplog.text
    plan = plan_of_arguments(arguments, {"n_trials": 4}, CONFIG)
    assert (plan.method, plan.n_trials) == ("random", 4)
    assert "drawn at random, none twice" in caplog.text
    assert "6 at most" in caplog.text


@pytest.mark.parametrize("other", ["model.hidden=[8]", "model.hidden=[8],[4]"])
def test_a_searched_key_that_is_given_twice_is_refused(other):
    searched = "model.hidden=[16],[32]"
    for arguments in ([other, "seed=0,1", searched], [searched, "seed=0,1", other]):
        with pytest.raises(UserError, match=r"model\.hidden: given twice, as ") as refused:
            plan_of_arguments(arguments, {}, CONFIG)
        assert searched in str(refused.value)
        assert other in str(refused.value)
    beside = ["optim=adam,sgd", "optim.b1=0.8,0.9", "optim.learning_rate=0.1,0.2"]
    plan = plan_of_arguments([*beside, "optim.learning_rate@sgd=1,2"], {}, CONFIG)
    assert "optim.learning_rate@sgd" in plan.parameters


def test_an_array_job_is_no_larger_than_its_trials(tmp_path):
    arguments, options = ["seed=1,2,3,4"], {"cluster": {"name": "slurm"}, "side_by_side": 2}
    plan = plan_of_arguments(arguments, options, CONFIG)
    with pytest.raises(UserError, match="there are 4 trials, 2 at a time; say workers=2"):
        begin(plan, tmp_path / "study", CONFIG, {"workers": 3}, None)
    assert not (tmp_path / "study").exists()
