"""Class weights and the balanced sampler."""

import numpy as np
from sklearn.utils.class_weight import compute_class_weight

from experiments.core.rng import root_key
from experiments.data.sampling import equal_shares
from experiments.training.setup import Setups
from experiments.training.step import epoch_order
from support import TINY, composed, trial_of


def test_class_weights_are_scikit_learns_and_inputs_of_one_program(data_home, tmp_path):
    """Balanced ones, numbers, and other numbers train side by side."""
    given = ["balanced", [1] * 10, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 0.5]]
    config = composed(*TINY, *data_home, "data.limit=100", "data.batch_size=100")
    setups, trials = Setups(), []
    for i, weights in enumerate(given):
        loss = config["loss"] | {"class_weights": weights}
        trials.append(trial_of({**config, "loss": loss}, tmp_path / str(i), setups=setups))
    assert len({id(trial.setup) for trial in trials}) == 1
    labels = trials[0].setup.splits.train.arrays["label"]
    wanted = compute_class_weight("balanced", classes=np.arange(10), y=labels)
    found = [trials[0].hparams[f"loss.class_weights.{i}"] for i in range(10)]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    values = {}
    for name, weights in (("plain", None), ("given", given[2])):
        loss = config["loss"] | {"class_weights": weights}
        core = Setups().of({**config, "loss": loss}).experiment
        state = core.init({}, root_key(0))
        model = core.trained_model({}, state.params, state.model_state)
        batch = core.prepare(trials[0].setup.splits.train.arrays, {}, root_key(0), train=True)
        values[name] = np.asarray(core.objective({})(model, batch, None, 0)[0]["loss"])
    np.testing.assert_allclose(
        values["given"], values["plain"] * np.array(given[2])[labels], rtol=1e-5
    )


def test_class_weights_of_another_number_of_classes_are_refused(run_cli):
    code, said = run_cli(*TINY, "loss.class_weights=[1,2]")
    assert code == 2
    assert "loss.class_weights has 2 numbers, but there are 10 classes" in said
    code, said = run_cli(*TINY, "data=sine", "model=lstm", "data.sampler=balanced")
    assert code == 2


def test_the_balanced_sampler_draws_all_classes_equally_often():
    labels = np.repeat([0, 1, 3], [10, 90, 900])
    orders = np.stack([epoch_order(root_key(0), e, 1000, equal_shares(labels)) for e in range(4)])
    counts = np.bincount(labels[orders.ravel()])
    np.testing.assert_allclose(counts / 4000, [1 / 3, 1 / 3, 0, 1 / 3], atol=0.03)
    assert not np.array_equal(orders[0], orders[1])
