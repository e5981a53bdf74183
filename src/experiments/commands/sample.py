"""Lets the weights of a language model write."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.commands.generation import Generator
from experiments.core.config import build
from experiments.errors import UserError
from experiments.objectives.sequence import Language
from experiments.tracking.terminal import Terminal
from experiments.training.restored import saved_weights
from experiments.training.session import open_session
from experiments.types import NonNegative, PositiveInt

NEEDS_RUN = True


@dataclass(frozen=True)
class Sample:
    """The keys of `sample`.

    Args:
      prompt: text to go on from, in which \\n is a new line; None: a new line.
      temperature: of the distribution that characters are drawn from; 0: always the likeliest one.
      length: characters.
    """

    prompt: str | None
    temperature: NonNegative
    length: PositiveInt


def main(config: dict[str, Any], directory: Path, source: Path) -> None:
    """Prints the prompt and what the model writes after it, and keeps it in `sample.txt`."""
    wanted: Sample = build(config["sample"])
    Terminal().status("reading data")
    session = open_session(config)
    if not isinstance(session.experiment.objective(session.hparams), Language):
        raise UserError("mode=sample is for language models: runs with objective=language")
    weights, _ = saved_weights(session, source)
    prompt = None if not wanted.prompt else wanted.prompt.replace("\\n", "\n")
    written = Generator(session, wanted.length)(
        weights, prompt=prompt, temperature=wanted.temperature, seed=config["seed"]
    )
    text = (prompt or "") + written
    (directory / "sample.txt").write_text(text, encoding="utf-8")
    print(text)
