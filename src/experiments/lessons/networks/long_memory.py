"""How far back recurrent networks remember."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import compose
from experiments.cli.python import Run
from experiments.core.config import build
from experiments.lessons.charts import panels, style
from experiments.lessons.lesson import Lab, Lesson, by_setting, final, over, untrained
from experiments.types import PositiveInt
from experiments.viz.figures import LEGEND
from experiments.viz.pages.statistics import spread

NEW = {  # networks at their initial weights
    "RNN": ["model=rnn"],
    "GRU": ["model=gru"],
    "LSTM, bias 1": ["model=lstm"],
    "LSTM, bias 5": ["model=lstm", "model.forget_bias=5.0"],
}
TRAINED = {"RNN": ["model=rnn"], "LSTM": ["model=lstm"]}
TOLERANCE = 0.04  # of a sum, as in Hochreiter & Schmidhuber 1997
SOLVED = 0.9  # of the sequences
STARTS = 10  # new networks of each kind
EXAMPLES = 128  # of a gradient

Runs = Mapping[str, list[Run]]  # by the cell


@dataclass(frozen=True, kw_only=True)
class LongMemory(Lesson):
    """The gradient of a plain recurrent network fades with the distance, that of an LSTM lasts.

    The gradient of the output at the end with respect to the input some steps before: of new
    networks, the LSTM with forget gates half open (a bias of 1 passes on 0.73 a step) and almost
    open (a bias of 5); and of networks trained on the adding problem, where it is to be 1 at both
    of the numbers that are marked, whatever their distance. Then two problems at a short and at a
    longer length: to add the two marked numbers of a sequence, and to copy three symbols after a
    delay. A problem is solved by a run with nine of ten sequences right.

    Args:
      short, long: steps of the adding problem.
      short_delay, long_delay: steps that the copied symbols wait.
      hidden: units.
      epochs: of each run.

    References:
      Hochreiter & Schmidhuber 1997; Bengio, Simard & Frasconi 1994; Pascanu, Mikolov & Bengio 2013;
      Jozefowicz, Zaremba & Sutskever 2015 (the bias of the forget gate).
    """

    short: PositiveInt
    long: PositiveInt
    short_delay: PositiveInt
    long_delay: PositiveInt
    hidden: PositiveInt
    epochs: PositiveInt

    def run(self, lab: Lab) -> None:
        adding = ["data=adding", f"objective.tolerance={TOLERANCE}"]
        copying = ["data=copy", "data.symbols=4", "data.length=3"]
        problems = {
            f"adding over {self.short} steps": [*adding, f"data.length={self.short}"],
            f"adding over {self.long} steps": [*adding, f"data.length={self.long}"],
            f"copying after {self.short_delay} steps": [*copying, f"data.delay={self.short_delay}"],
            f"copying after {self.long_delay} steps": [*copying, f"data.delay={self.long_delay}"],
        }
        runs = {problem: self._trained(lab, problem, given) for problem, given in problems.items()}
        _, long_adding, *_ = problems
        self._gradients(lab, problems[long_adding], runs[long_adding])
        rows = []
        for index, (problem, cells) in enumerate(runs.items()):
            solved = {cell: final(own, "val/solved") for cell, own in cells.items()}
            rows.append([problem, *map(spread, solved.values())])
            is_long = bool(index % 2)
            for cell, shares in solved.items():
                done = int(np.sum(shares >= SOLVED))
                fails = is_long and cell == "RNN"
                wanted = 0 if fails else len(shares)
                decided = {wanted: True, len(shares) - wanted: False} if len(shares) > 1 else {}
                holds = decided.get(done)  # of one seed alone nothing follows
                claim = f"{cell} {'does not solve' if fails else 'solves'} {problem}"
                lab.conclude(claim, holds, f"{done} of {len(shares)} seeds")
        lab.table("share of the sequences solved", ["problem", *TRAINED], rows)

    def _trained(self, lab: Lab, problem: str, given: list[str]) -> Runs:
        """Train each cell on a problem."""
        settings = {cell: [*self._shared, *own, *given] for cell, own in TRAINED.items()}
        runs, names = by_setting(settings, self.seeds)
        trained = lab.train(problem.replace(" ", "_"), runs)
        return {c: [r for r, n in zip(trained, names, strict=True) if n == c] for c in TRAINED}

    @property
    def _shared(self) -> list[str]:
        shared = ["init=lecun_normal", "optim.learning_rate=0.01", "schedule=cosine"]
        shared += ["optim.clip_norm=1.0", f"model.hidden={self.hidden}"]
        shared += ["data.examples=3200", "data.held_out=640"]
        return [*shared, f"trainer.epochs={self.epochs}"]

    def _gradients(self, lab: Lab, problem: list[str], trained: Runs) -> None:
        titles = ["new networks", f"trained to add over {self.long} steps"]
        figure, (left, right) = panels(titles, width=5.0)
        lost = {}  # decades from the last step to the first
        for index, (name, given) in enumerate(NEW.items()):
            settings = over(STARTS, *self._shared, *problem, *given)
            norms = _norms([compose(*own) for own in settings])
            lost[name] = np.log10(norms[:, 0] / norms[:, -1])
            mean = np.exp(np.log(norms / norms[:, :1]).mean(axis=0))
            left.plot(np.arange(len(mean)), mean, label=name, **style(index, marks=False))
        left.set(xlabel="steps back", ylabel="gradient of the output, at the last step 1")
        left.set_yscale("log")
        left.legend(**LEGEND)
        wrong = {}
        for index, (cell, runs) in enumerate(trained.items()):
            distance, gradients = _of_marked(runs)
            look = style(index) | {"linestyle": "", "ms": 3, "alpha": 0.5}
            right.plot(distance + index / 2 - 0.25, gradients[0], label=cell, **look)
            far = distance >= self.long // 2
            wrong[cell] = np.abs(gradients[:, far] - 1).mean(axis=1)
        right.axhline(1, color="#24292f", linewidth=1, linestyle=(0, (2, 2)), label="the sum's own")
        right.set(xlabel="steps back of a marked number", ylabel="gradient of the output")
        right.legend(**LEGEND)
        caption = (
            "Left: norms for each step, geometric means over examples and seeds. Right: each mark "
            "is a marked number of an example, in one run of each."
        )
        lab.figure("gradients", figure, caption)
        steps = self.long - 1
        lab.table(
            f"decades that the gradient of new networks loses in {steps} steps",
            ["network", "decades"],
            [[name, spread(values)] for name, values in lost.items()],
        )
        claim = "the gradient of a new RNN fades faster than that of a new LSTM"
        lab.compare(claim, lost["RNN"], lost["LSTM, bias 1"])
        claim = "it fades faster than that of a new LSTM with open forget gates"
        lab.compare(claim, lost["RNN"], lost["LSTM, bias 5"])
        claim = "trained, the RNN's gradient at numbers far back is further off 1 than the LSTM's"
        lab.compare(claim, wrong["RNN"], wrong["LSTM"])


def input_gradients(models: Sequence[nnx.Module], x: jax.Array) -> np.ndarray:
    """Return the gradient of each example's output by its inputs, [models, B, T, F]."""
    graph = nnx.graphdef(models[0])

    @jax.jit  # once for all of them
    @jax.grad
    def gradient(x: jax.Array, state: Any) -> jax.Array:
        return jnp.sum(nnx.merge(graph, state)(x))

    return np.array([gradient(x, nnx.state(model)) for model in models])


def _sequences(config: Any) -> jax.Array:
    """Return sequences of the validation split, [B, T, F]."""
    source = build(config["data"])
    seeds = source.load().validation.arrays["seed"][:EXAMPLES]
    return source.pipeline({"seed": seeds}, jax.random.key(0), train=False)["sequence"]


def _norms(configs: Sequence[Any]) -> np.ndarray:
    """Return the norms of new networks' gradients by the steps back from the end, [networks, T]."""
    gradients = input_gradients(list(map(untrained, configs)), _sequences(configs[0]))
    norms = np.linalg.norm(gradients, axis=-1)
    return np.exp(np.log(norms).mean(axis=1))[:, ::-1]


def _of_marked(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
    """Return for each marked number the steps back to it, [N], and the gradients, [runs, N]."""
    x = _sequences(runs[0].config)
    example, step = np.nonzero(np.asarray(x)[..., 1])
    gradients = input_gradients([run.model for run in runs], x)
    return x.shape[1] - 1 - step, gradients[:, example, step, 0]
