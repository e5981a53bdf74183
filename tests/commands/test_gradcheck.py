"""`mode=gradcheck`: a wrong derivative is found and named, a kink is not taken for one."""

import json

import jax
import numpy as np
import pytest

from experiments.core.config import build
from experiments.core.diagnostics.gradients import check_gradients
from experiments.core.experiment import Experiment
from support import composed

WRONG = """
import jax
from experiments.models.mlp import MLP
from experiments.models.layers import flatten

@jax.custom_vjp
def softplus(x):
    return jax.nn.softplus(x)

softplus.defvjp(lambda x: (softplus(x), x), lambda x, g: (g * jax.nn.sigmoid(x) * 1.001,))

class Mine(MLP):
    def __call__(self, x, *, rngs=None):
        first, second = self.hidden
        return self.output(jax.nn.softplus(second(softplus(first(flatten(x))))))
"""


def test_a_wrong_gradient_of_ones_own_ends_with_exit_code_1_and_is_named(
    run_cli, tmp_path, monkeypatch, capsys
):
    (tmp_path / "planted.py").write_text(WRONG)
    monkeypatch.chdir(tmp_path)
    options = ["mode=gradcheck", "logger=none", "model.hidden=[5,4]", "gradcheck.coordinates=60"]
    code, error = run_cli(*options)
    assert code == 0, error
    code, _ = run_cli(*options, "model._target_=planted.Mine")
    assert code == 1
    rows = json.loads((tmp_path / "run/gradcheck.json").read_text())["rows"]
    failed = {row["name"] for row in rows if not row["passed"]}
    assert failed == {"hidden.0.kernel", "hidden.0.bias"}


def report_of(*overrides, **changed):
    config = composed(*overrides)
    data, wanted = build(config["data"]), build(config["gradcheck"] | changed)
    core = Experiment(config, data.spec, data.pipeline, steps_per_epoch=2, total_steps=4)
    batch, key = data.load().train.take(np.arange(3)).arrays, jax.random.key(0)
    return check_gradients(core, core.init_weights({}, key), batch, key, wanted)


@pytest.mark.parametrize(
    "case",
    [
        ["model=mlp", "model.hidden=[6]", "model.dropout=0.3", "loss=hinge"],
        pytest.param(
            ["model=gan", "model.hidden=[5,4]", "model.latents=3"], marks=pytest.mark.slow
        ),
        [
            *("model=cnn", "data.resize=false"),
            "model.layers=[{conv:{features:2,kernel:3}},batch_norm,relu,{max_pool:2},flatten,{dense:classes}]",
        ],
    ],
)
def test_what_trains_is_right_at_kinks_too(case):
    assert all(row.passed for row in report_of(*case).rows)


@pytest.mark.slow
def test_a_kink_is_told_from_an_error():
    # |x - y| where black pixels and the outputs are 0; nothing else is there to move
    shown = report_of("model=autoencoder", "loss=mae", "init=zeros", jitter=0.0, coordinates=600)
    assert all(row.passed for row in shown.rows)
    (bias,) = (row for row in shown.rows if row.size == 64 and row.kinks)
    assert 0 < bias.kinks < bias.checked
    # while the perceptron's rule is not the gradient of a step, which has none
    report = report_of("model=perceptron", "loss=mse")
    assert not any(row.passed or row.kinks or row.numeric for row in report.rows)
