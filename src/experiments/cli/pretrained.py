"""A new run that starts from the weights of another takes that one's model too."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.errors import UserError

PRETRAINED = "model.pretrained="
SAYS_MODEL = r"[+~]*(model|experiment|resume|checkpoint)\b"


def with_model_of_run(arguments: Sequence[str]) -> list[str]:
    """Add the model of the run that `model.pretrained=` names, if nothing else is said of one."""
    of_model = [argument for argument in arguments if re.match(SAYS_MODEL, argument)]
    if len(of_model) != 1 or not of_model[0].startswith(PRETRAINED):
        return [*arguments]
    return [*_model_of(Path(unquoted(of_model[0].removeprefix(PRETRAINED)))), *arguments]


def runs_of_weights(arguments: Sequence[str]) -> list[Path]:
    """Return the folder of the run that `model.pretrained=` names; none of other weights.

    Neither where the command says a folder.
    """
    if any(argument.startswith("hydra.run.dir=") for argument in arguments):
        return []
    given = [a.removeprefix("++") for a in arguments]
    given = [a.removeprefix(PRETRAINED) for a in given if a.startswith(PRETRAINED)]
    return [folder for one in given[-1:] if (folder := _run_of(Path(unquoted(one))))]


def _run_of(source: Path) -> Path | None:
    from experiments.training.run_folder import split_source

    try:
        return split_source(source)[0]
    except UserError:
        return None


def _model_of(source: Path) -> list[str]:
    """Return overrides for the model of a run; none for other weights, which say no model."""
    import yaml

    from experiments.search.configs import as_override
    from experiments.tracking.jsonl import read_mapping
    from experiments.training.run_folder import HYDRA

    if (folder := _run_of(source)) is None:
        return []
    hydra = folder / HYDRA / "hydra.yaml"
    model = read_mapping(folder / HYDRA / "config.yaml", yaml.safe_load)["model"]
    if hydra.is_file():
        choice = read_mapping(hydra, yaml.safe_load)["hydra"]["runtime"]["choices"]["model"]
    elif (choice := _nearest_choice(model)) is None:
        return []
    values = {
        path: value for path, value in model.items() if path not in ("_target_", "pretrained")
    }
    plain = {p: v for p, v in values.items() if not re.search(r"_target_|\$\{", str(v))}
    return [f"model={choice}", *(f"++model.{p}={as_override(v)}" for p, v in plain.items())]


def _nearest_choice(model: Mapping[str, Any]) -> str | None:
    """Return the shipped choice that is most like the model of a trial, or of a run from Python.

    Their folders say no choices. Of a class that no shipped choice has there is none.
    """
    from experiments.training.restored import choices_of_kind

    def unlike(choice: tuple[str, dict[str, Any]]) -> int:
        return sum(model.get(key) != value for key, value in choice[1].items())

    found = list(choices_of_kind({"pretrained": None, **model}))
    return min(found, key=unlike)[0] if found else None


def unquoted(value: str) -> str:
    """Return the text that a value stands for in Hydra's grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return str(OverridesParser.create().parse_override(f"value={value}").value())
