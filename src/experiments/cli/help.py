"""The page of `run --help`: choices of groups, and all keys with what their files say of them."""

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTH = 112  # of the page
VALUES = 34  # columns of keys with their values, before what is said of them
CODE = ("_target_", "_partial_")  # keys that name code
KEY = re.compile(r"( *)([\w@/]+):(?:\s|$)[^#]*(?:#\s*(.*))?$")
MORE = re.compile(r" +# *(.*)")  # a comment that goes on
BUILDS_ON = re.compile(r"^defaults: *\[(.*)\]|^  - (\w\S*)$", re.M)

USAGE = """\
run <group>=<choice> ... <key>=<value> ...
    run model=lenet5 optim=adam optim.learning_rate=0.01
    run model=lenet5 --help             the keys of that choice; --cfg job: the config as YAML
"""


def of_composed(root: Any) -> str:
    """Return the page for what Hydra has composed, as a template of its own."""
    from omegaconf import OmegaConf

    from experiments.cli.search_keys import search_help

    runtime = root.hydra.runtime
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    config: Any = OmegaConf.to_container(root)
    del config["hydra"]
    keys = page(config, OmegaConf.to_container(runtime.choices), folders)  # type: ignore[arg-type]
    return f"{keys}\n\n{search_help()}".replace("$", "$$")


def page(config: Mapping[str, Any], choices: Mapping[str, str], folders: Sequence[Path]) -> str:
    """Return the page for a composed config.

    Args:
      config: without what is Hydra's own.
      choices: of each group.
      folders: with config files; the first ones count.
    """
    files = _choices(folders)
    parts = [USAGE, "Groups and their choices:\n"]
    for group, names in files.items():
        text = " ".join(names)
        parts += textwrap.wrap(
            text, WIDTH, initial_indent=f"    {group:<12}", subsequent_indent=" " * 16
        )
    parts.append("\nKeys with their values, by group:\n")
    for group in [name for name in config if name in files]:
        choice = choices.get(group)
        said = _comments(_files(folders, group, choice)) if choice else {}
        parts += [f"{group}={choice or 'null'}", *_lines(config[group], said), ""]
    others = {name: value for name, value in config.items() if name not in files}
    said = _comments([(folder / "config.yaml", "") for folder in folders])
    return "\n".join([*parts, "Further keys:\n", *_lines(others, said)])


def _choices(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Return the choices of each group; files with an underscore are only built on."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for path in folder.glob("*/**/*.yaml"):
            group, *name = path.relative_to(folder).with_suffix("").parts
            if group not in ("hydra", "local") and not path.name.startswith("_"):
                found.setdefault(group, set()).add("/".join(name))
    return {group: sorted(found[group]) for group in sorted(found)}


def _lines(node: Any, said: Mapping[str, str], path: str = "", depth: int = 1) -> Iterator[str]:
    """Yield the lines of the keys in a mapping, those of mappings in it further in."""
    for key, value in node.items() if isinstance(node, Mapping) else ():
        if key in CODE:
            continue
        nested = isinstance(value, Mapping) and bool({*value} - {*CODE})
        text = "    " * depth + (f"{key}:" if nested else f"{key}: {_flow(value)}")
        comment = textwrap.wrap(said.get(f"{path}{key}", ""), WIDTH - VALUES)
        if len(text) < VALUES and comment:
            text = f"{text:<{VALUES}}{comment.pop(0)}"
        yield text
        yield from (" " * VALUES + line for line in comment)
        if nested:
            yield from _lines(value, said, f"{path}{key}.", depth + 1)


def _flow(value: Any) -> str:
    """Return a value as a command line takes it."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    return text.strip().removesuffix("...").strip()


def _files(
    folders: Sequence[Path], group: str, choice: str, prefix: str = ""
) -> list[tuple[Path, str]]:
    """Return the file of a choice and those that it builds on, with the path where each goes."""
    paths = (folder / group / f"{choice}.yaml" for folder in folders)
    found = [(path, prefix) for path in paths if path.is_file()][:1]
    for path, _ in [*found]:
        for line in BUILDS_ON.findall(path.read_text()):
            for name in re.split(r", *", "".join(line)):
                base, _, inner = name.partition("@")
                if base != "_self_":
                    found += _files(folders, group, base, f"{prefix}{inner}." if inner else prefix)
    return found


def _comments(files: Iterable[tuple[Path, str]]) -> dict[str, str]:
    """Return what files say of their keys, by dotted path; the first that says anything counts."""
    found: dict[str, str] = {}
    for file, prefix in files:
        stack: list[tuple[int, str]] = []
        own: dict[str, str] = {}
        last = ""
        for line in file.read_text().splitlines():
            if match := KEY.match(line):
                indent, key, comment = len(match[1]), match[2], match[3]
                stack = [*(level for level in stack if level[0] < indent), (indent, key)]
                last = prefix + ".".join(name for _, name in stack)
                own[last] = comment or ""
            elif last and (more := MORE.match(line)):
                own[last] += f" {more[1]}"
            else:
                last = ""
        found = own | {path: text for path, text in found.items() if text}
    return found
