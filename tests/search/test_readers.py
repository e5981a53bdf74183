"""Hydra's grammar as a search space."""

import pytest

from experiments.errors import UserError
from experiments.search.configs import Configs
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
    assert space.grid(None) == [
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
