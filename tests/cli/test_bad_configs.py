"""Hundreds of wrong values: each either trains one step or ends in a plain message."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from experiments.cli.messages import explain
from experiments.core.config import check_config, leaves
from experiments.training.setup import Setups
from support import composed

# group choices that reach every kind of key without large models
CHOICES = [
    ["model=mlp", "optim=adam", "schedule=warmup_cosine", "init=truncated_normal"],
    ["model=lenet5", "optim=momentum", "schedule=step", "init=he_normal", "loss=huber"],
    ["model=perceptron", "optim=muon", "schedule=one_cycle", "init=uniform", "loss=hinge"],
]
# names of code and folders of data are another matter: see test_cli.py and tests/data
SKIPPED = ("_target_", "_partial_", "data.dir", "data.cache_dir", "data.workers", "data.stream")

VALUES = st.one_of(
    st.integers(-5, 5),
    st.sampled_from([10**9, 10**18, -(10**12)]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([None, True, False, "", "abc", "1e-3", [], [0], [1, "a"], {}, [[]], [-1.5]]),
    st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), max_size=8),
)


def keys(overrides):
    paths = [path for path, _ in leaves(composed(*overrides))]
    return [p for p in paths if not p.endswith(SKIPPED) and p.partition(".")[0] != "hydra"]


@pytest.mark.parametrize("choices", CHOICES, ids=lambda c: c[0])
def test_wrong_values_end_in_plain_messages(choices, data_home):
    base = [*data_home, *choices, "debug=fast", "data.limit=128"]
    names, setups = keys(base), Setups()

    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(names), VALUES)
    def attempt(name, value):
        config = OmegaConf.create(composed(*base))
        OmegaConf.update(config, name, value, merge=False)
        plain = OmegaConf.to_container(config, resolve=True)
        try:
            check_config(plain)
            setups.of(plain)
        except Exception as error:
            message = explain(error)
            if message is None or len(message.splitlines()) > 2:
                pytest.fail(f"{name}={value!r}: {type(error).__name__}: {error}")

    attempt()
