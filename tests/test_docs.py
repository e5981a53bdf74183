"""What the pages and the comments say, against the config files and the code."""

import inspect
import re
import shlex
import tomllib
import typing
from pathlib import Path

import pytest
import yaml
from versions import PYTHONS

from docs import reference
from experiments.cli.search_keys import SEARCH_KEYS, search_help
from experiments.core.config import locate
from experiments.search.actions import __dict__ as actions
from experiments.types import Mode
from support import ROOT, choices

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path: path.read_text() for path in PAGES}
CONF = ROOT / "conf"
OWN = {"wide", "mine", "watch", "dice", "sharpened", "signs", "halved", "lab", "lenet"}
"""What examples call the reader's own, and a misspelt name."""
OWN_KEYS = {"model.width", "callbacks.watch._target_"}


def test_the_tables_of_choices_are_those_of_the_config_files():
    page = reference.CHOICES.read_text()
    assert reference.with_tables(page) == page, "make docs makes the tables anew"


def test_every_shipped_file_says_in_a_sentence_what_it_is():
    named = [path for group in reference.groups() for path in reference.files(group)]
    assert [path for path in named if not 10 < len(reference.summary(path)) < 300] == []


def test_the_comments_name_every_value_that_a_key_may_have():
    missing = []
    for path in CONF.rglob("*.yaml"):
        text = path.read_text()
        for target in re.findall(r"^_target_: (experiments\S+)", text, re.M):
            found = locate(target)
            function = found.__init__ if inspect.isclass(found) else found
            for key, hint in typing.get_type_hints(function, include_extras=True).items():
                said = re.search(rf"^{key}:.*(\n +#.*)*", text, re.M)
                if said and "all names: model=mlp" not in said[0]:
                    unsaid = values(hint) - set(re.findall(r"-?\w+", said[0]))
                    missing += [f"{path.relative_to(ROOT)}: {key} may be {v}" for v in unsaid]
    assert missing == []


def values(hint) -> set[str]:
    """Return the values that an annotation lists."""
    if typing.get_origin(hint) is typing.Literal:
        return set(map(str, typing.get_args(hint)))
    return set().union(*(values(part) for part in typing.get_args(hint)))


def test_modes_and_small_groups_are_named_where_one_chooses_among_them():
    text, modes = (CONF / "config.yaml").read_text(), typing.get_args(Mode)
    for key, names in {"mode": modes, "debug": choices("debug")}.items():
        said = re.search(rf"^(?:  - )?{key}: .*(\n  +#.*)*", text, re.M)[0]
        assert set(names) - set(re.findall(r"\w+", said)) == set()
    pages = "\n".join(TEXTS.values())
    assert [mode for mode in modes if f"mode={mode}" not in pages] == []


def test_every_key_of_a_search_is_in_the_help_that_the_page_about_searching_names():
    assert "sweep.py --help" in TEXTS[ROOT / "docs/searching.md"]
    assert [key for key in SEARCH_KEYS if f"{key}=" not in search_help()] == []


def test_pages_name_keys_and_choices_that_there_are():
    known, wrong = keys(), []
    for path, text in TEXTS.items():
        for key, value in said_in(text):
            group, _, rest = key.partition(".")
            if group in reference.groups() and not rest:
                said = [
                    name for name in re.split(r"[,|]", value.strip("[]'")) if name.isidentifier()
                ]
                wrong += [
                    f"{path.name}: {key}={c}" for c in said if c not in {*choices(group), *OWN}
                ]
            elif key not in known and group not in SEARCH_KEYS:
                wrong.append(f"{path.name}: {key}")
    assert wrong == []


def said_in(text: str) -> list[tuple[str, str]]:
    """Return the keys and values of the commands in a page, and of what it says in code."""
    found = []
    for line in re.findall(r"(?:run|sweep)(?:\.py)? (.*)", text):
        parts = shlex.shlex(line.partition("`")[0], posix=True, punctuation_chars=False)
        parts.whitespace_split, parts.commenters = True, "#"
        try:
            found += list(parts)
        except ValueError:  # an apostrophe of a sentence
            found += line.split()
    found += re.findall(r"`([^`\s]+)`", text)
    pairs = (re.fullmatch(r"\+?([a-z_]+(?:\.[\w.]+)?)=(.*)", word) for word in found)
    return [pair.groups() for pair in pairs if pair]


def keys() -> set[str]:
    """Return the dotted names of all keys in `conf/`, of searches, and of the programs."""
    found = {*SEARCH_KEYS, *actions, *reference.groups(), *OWN_KEYS, "wandb"}
    for path in CONF.rglob("*.yaml"):
        name = path.relative_to(CONF).parts
        lines = path.read_text()
        inner = "" if len(name) == 1 or "# @package _global_" in lines else f"{name[0]}."
        for prefix in {inner, f"logger.{path.stem}." if name[0] == "logger" else inner}:
            found |= set(dotted(yaml.safe_load(lines) or {}, prefix))
    return found | {f"hydra.{key}" for key in ("run.dir", "job.chdir")}


def dotted(node, prefix):
    """Return the dotted names of a mapping, and of those in it."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from dotted(value, f"{prefix}{key}.")


def test_pages_name_make_targets_and_files_that_there_are():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    wrong = []
    for path, text in TEXTS.items():
        said = re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.M)
        wrong += [f"{path.name}: make {name}" for name in said if name not in targets]
        base = ROOT if "{include} ../" in text else path.parent
        for link in re.findall(r"\]\(([^)#\s]+)", text):
            made = link.startswith(("http", "reference/"))
            if not made and not (base / link).exists():
                wrong.append(f"{path.name}: {link}")
        for name in re.findall(r"`((?:src|tests|docs|conf|benchmarks|sweeps)/[\w./-]+)`", text):
            if not (ROOT / name).exists() and Path(name).stem not in {*OWN, "default"}:
                wrong.append(f"{path.name}: {name}")
    assert wrong == []


def test_one_version_is_said_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = project["version"]
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1] == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    minor = version.rpartition(".")[0]
    assert [p for p in (ROOT / "tests/training/runs").iterdir() if p.name.startswith(minor)]


@pytest.mark.parametrize("job", ["test", "versions"])
def test_continuous_integration_runs_every_python(job):
    workflow = yaml.safe_load(Path(ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["jobs"][job]["strategy"]["matrix"]["python"] == list(PYTHONS)
