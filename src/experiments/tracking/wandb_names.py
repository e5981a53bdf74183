"""How W&B calls a run and its config, which names it refuses, and what a sweep file names."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments import errors
from experiments.errors import UserError

SECRET = re.compile(rf"{errors.SECRET}$", re.IGNORECASE)
LONGEST, LONGEST_TAG = 128, 64  # characters of a project or a name, and of a tag
MACRO = re.compile(r"\$\{(env|interpreter|program|args\w*)\}")  # of the command of a sweep file
VARIABLE = re.compile(r"\$\{envvar:(\w+)\}")
STARTS_RUN = re.compile(r"(.*/)?(env|uv|python[\d.]*|run\.py|experiments|run)|-[Pum]")
OVERRIDE = re.compile(r"[\w~+][^=]*=")
IN_NO_PROJECT, IN_NO_ID = "/\\#?%:", ":;,#?/'"


def project_of(configured: str | None) -> str:
    """Return the project that a config asks for, or else the environment."""
    return configured or os.environ.get("WANDB_PROJECT") or "experiments"


def check_names(project: str, name: str | None, tags: Sequence[str]) -> None:
    """Check what W&B is known to refuse, which it does offline when all is over.

    Raises:
        UserError: it would refuse a name, or the id of a run in the environment.
    """
    names = {"project": (project, IN_NO_PROJECT), "name": (name or "", "")}
    names |= {"WANDB_RUN_ID": (os.environ.get("WANDB_RUN_ID", ""), IN_NO_ID)}
    for what, (value, forbidden) in names.items():
        if found := [character for character in forbidden if character in value]:
            raise UserError(f"W&B takes no {' '.join(found)} in its {what}, as in {value!r}")
        if len(value) > LONGEST:
            start = f"{value[:20]!r}..., which has {len(value)}"
            raise UserError(f"W&B takes at most {LONGEST} characters in its {what}, not {start}")
    for tag in tags:
        if not 1 <= len(tag) <= LONGEST_TAG:
            start = f"{tag[:20]!r}..., which has {len(tag)}"
            raise UserError(f"W&B takes 1 to {LONGEST_TAG} characters in a tag, not {start}")


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of nested mappings without anything secret."""
    shown = {str(key): value for key, value in config.items() if not SECRET.search(str(key))}
    return {k: public(v) if isinstance(v, Mapping) else v for k, v in shown.items()}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys, `optim.learning_rate`, without anything secret."""
    flat: dict[str, Any] = {}
    for key, value in public(config).items():
        inside = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{key}.") if inside else {f"{prefix}{key}": value}
    return flat


def tags_of(config: Mapping[str, Any]) -> list[str]:
    """Return the objective, model and data of a run, such as Classification, LeNet5, mnist."""
    classes = [config.get(group, {}).get("_target_") for group in ("objective", "model")]
    names = [target.rpartition(".")[2] for target in classes if target]
    tags = [*names, *filter(None, [config.get("data", {}).get("name")])]
    return [tag[:LONGEST_TAG] for tag in tags]


def note_of(directory: Path) -> str | None:
    """Return the overrides of the run in `directory`, without anything secret; None without any."""
    path = directory / ".hydra" / "overrides.yaml"
    overrides = yaml.safe_load(path.read_text()) if path.is_file() else None
    said = [o for o in overrides or [] if not SECRET.search(str(o).partition("=")[0])]
    return " ".join(said) or None


def flat_parameters(parameters: Any) -> Any:
    """Return the parameters of a sweep file with dotted names in the place of nested ones."""
    if not isinstance(parameters, Mapping):
        return parameters
    flat: dict[str, Any] = {}
    for name, node in parameters.items():
        inner = node.get("parameters") if isinstance(node, Mapping) and len(node) == 1 else None
        if isinstance(inner, Mapping):
            flat |= {f"{name}.{key}": value for key, value in flat_parameters(inner).items()}
        else:
            flat[name] = node
    return flat


def flat_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """Return the keys on the way to a node of a sweep file as `flat_parameters` has them."""
    first, names, rest = keys[0], list(keys[1:2]), list(keys[2:])
    while first == "parameters" and rest[:1] == ["parameters"] and len(rest) > 1:
        names, rest = [f"{names[0]}.{rest[1]}"], rest[2:]
    return first, *names, *rest


def overrides_of(command: Any) -> list[str]:
    """Return the overrides that the command of a sweep file gives to each run.

    Raises:
        UserError: it is no list, or starts something else.
    """
    if not isinstance(command or [], list):
        raise UserError("command must be a list, as in W&B's documentation")
    overrides = []
    for part in map(str, command or []):
        if missing := [name for name in VARIABLE.findall(part) if name not in os.environ]:
            raise UserError(f"command: the environment has no {missing[0]}")
        part = VARIABLE.sub(lambda found: os.environ[found[1]], part)
        if OVERRIDE.match(part) and not MACRO.search(part):
            overrides.append(part)
        elif not MACRO.fullmatch(part) and not STARTS_RUN.fullmatch(part):
            raise UserError(
                f"command: {part!r} is not for this program, which starts its runs itself; "
                "overrides such as trainer.epochs=5 are"
            )
    return overrides
