"""Hydra's grammar as a search space."""

import pytest

from experiments.errors import UserError
from experiments.search.configs import Configs, check_added
from experiments.search.readers import read_space, read_sweep_file, split
from support import ROOT, choices

CONFIG = ROOT / "conf"


@pytest.mark.parametrize(
    ("argument", "node"),
    [
        ("optim=adam,sgd", {"values": ["adam", "sgd"]}),
        ("seed=range(1,4)", {"values": [1, 2, 3]}),
        ("model.dropout=choice(0.0,0.5)", {"values": [0.0, 0.5]}),
        ("model.hidden=[8],[8,8]", {"values": [[8], [8, 8]]}),
        ("optim.b1=interval(0.5,0.9)", {"distribution": "uniform", "min": 0.5, "max": 0.9}),
        (
            "optim.learning_rate=tag(log,interval(1e-5,1e-1))",
            {"distribution": "log_uniform_values", "min": 1e-5, "max": 0.1},
        ),
        (
            "data.batch_size=int(interval(1,64))",
            {"distribution": "int_uniform", "min": 1, "max": 64},
        ),
        (
            "data.batch_size=int(tag(log,interval(1,64)))",
            {"distribution": "q_log_uniform_values", "min": 1, "max": 64, "q": 1},
        ),
        ("model.batch_norm=true,false", {"values": [True, False]}),
        ("freeze=null,[conv1],conv2", {"values": [None, ["conv1"], "conv2"]}),
        (
            "data.batch_size=int(tag(log,q8,interval(8,64)))",
            {"distribution": "q_log_uniform_values", "min": 8, "max": 64, "q": 8},
        ),
        (
            "model.dropout=tag(q0.1,interval(0,0.5))",
            {"distribution": "q_uniform", "min": 0.0, "max": 0.5, "q": 0.1},
        ),
        ("optim.b1@lion=0.8,0.9", {"values": [0.8, 0.9]}),
        ("optim=glob(*)", {"values": choices("optim")}),
        ("model=glob(vgg*)", {"values": [c for c in choices("model") if c.startswith("vgg")]}),
    ],
)
def test_sweeps_of_hydra_are_parameters_of_w_and_b(argument, node):
    parameters, plain = split(Configs(CONFIG).parse([argument, "trainer.epochs=3"]))
    assert parameters == {argument.partition("=")[0]: node}
    assert plain == ["trainer.epochs=3"]


def test_a_log_range_that_touches_zero_is_refused():
    configs = Configs(CONFIG)
    parameters, _ = split(configs.parse(["optim.learning_rate=tag(log,interval(0,1))"]))
    with pytest.raises(UserError, match="must lie above 0"):
        read_space(parameters, configs)


def test_a_parameter_exists_only_beside_the_choice_that_has_it():
    parameters = {"optim": {"values": ["adam", "momentum"]}, "optim.b1": {"values": [0.8, 0.9]}}
    space = read_space(parameters, Configs(CONFIG))
    assert list(space.grid(None)) == [
        {"optim": "adam", "optim.b1": 0.8},
        {"optim": "adam", "optim.b1": 0.9},
        {"optim": "momentum"},
    ]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("optim.rule: {values: [optax.scale_by_adam, os.system]}", "allow=[os]"),
        ("model._target_: {value: subprocess.run}", "allow=[subprocess]"),
        ("name: {value: '${oc.env:HOME}'}", "may not read this"),
        ("allow: {value: [os]}", "only a command line can allow"),
    ],
)
def test_a_sweep_file_names_nothing_that_runs(tmp_path, entry, words):
    path = tmp_path / "sent.yaml"
    path.write_text(f"run_cap: 4\nparameters:\n  {entry}\n")
    with pytest.raises(UserError) as error:
        read_sweep_file(path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert words in str(error.value)


def test_a_key_that_is_added_is_read_by_something(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.yaml").write_text("# @package _global_\ntrainer: {epochs: 3}\n")
    for added in (["+mine=a"], ["+width=8", "model.hidden=[${width}]"], ["+callbacks.a.b=1"]):
        configs = Configs(CONFIG, added, str(tmp_path))
        check_added(added, configs.compose(), configs.groups)
    for added in ("+foo=1", "++foo.bar=1", "+cluster.foo=1"):
        configs = Configs(CONFIG, [added])
        with pytest.raises(UserError, match="nothing reads"):
            check_added([added], configs.compose(), configs.groups)


def test_a_tag_is_log_or_a_step():
    configs = Configs(CONFIG)
    with pytest.raises(UserError, match="'lin': tags are log, and a step such as q8"):
        split(configs.parse(["optim.b1=tag(lin,interval(0,1))"]))


def test_a_range_may_depend_on_a_choice():
    """With SGD other learning rates are worth a try; the other choices have the usual ones."""
    rates = ["optim.learning_rate=0.1,0.2", "optim.learning_rate@sgd=1,2"]
    parameters, _ = split(Configs(CONFIG).parse(["optim=adam,sgd,adagrad", *rates]))
    space = read_space(parameters, Configs(CONFIG))
    drawn = [space.draw(lambda name, _, point=point: point[name]) for point in space.grid(None)]
    rates = [(one["optim"], one["optim.learning_rate"]) for one in drawn]
    usual = [(optim, rate) for optim in ("adam", "adagrad") for rate in (0.1, 0.2)]
    assert sorted(rates) == sorted([*usual, ("sgd", 1), ("sgd", 2)])
    parameters["optim.learning_rate@lion"] = {"values": [1, 2]}
    (complaint,) = read_space(parameters, Configs(CONFIG)).check_paths()
    assert complaint == "optim.learning_rate@lion: no trial has this key beside a choice lion"
