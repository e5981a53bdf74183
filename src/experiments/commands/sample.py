"""Let the weights of a language model write text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.core.config import build
from experiments.core.generation import generate
from experiments.errors import UserError
from experiments.machine import write_whole
from experiments.objectives.sequence import Language
from experiments.tracking.terminal import Terminal
from experiments.training.restored import Restored
from experiments.types import NonNegative, PositiveInt


@dataclass(frozen=True)
class Sample:
    """The keys of `sample`.

    Args:
        prompt: text to continue, in which \\n is a new line; None: a new line.
        temperature: of the distribution of the next character; 0: always the likeliest one.
        length: of the new text, in characters.
    """

    prompt: str | None
    temperature: NonNegative
    length: PositiveInt


def main(config: dict[str, Any], directory: Path, source: Path) -> None:
    """Print the prompt and what the model writes after it, and write both to `sample.txt`."""
    wanted: Sample = build(config["sample"])
    run = Restored(config, source, Terminal())
    if not isinstance(run.setup.objective, Language):
        raise UserError("mode=sample is for language models: runs with objective=language")
    prompt = None if not wanted.prompt else wanted.prompt.replace("\\n", "\n")
    written = generate(
        run.setup.experiment,
        run.hparams,
        run.weights,
        "".join(run.setup.splits.class_names),
        length=wanted.length,
        prompt=prompt,
        temperature=wanted.temperature,
        seed=config["seed"],
    )
    text = (prompt or "") + written
    write_whole(directory / "sample.txt", text)
    print(text)
