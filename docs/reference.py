"""The reference of the config, made from the comments in `conf/` and the docstrings of its code.

    python docs/reference.py # docs/reference/, a page a group, and the tables of docs/choices.md

`make docs` calls it; `tests/test_docs.py` fails where the tables do not say what is in `conf/`.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONF, SOURCE = ROOT / "conf", ROOT / "src"
CHOICES = ROOT / "docs" / "choices.md"
BEGIN, END = "<!-- from conf/ by docs/reference.py -->\n", "<!-- end -->\n"


def groups() -> list[str]:
    """Return the config groups, in the order in which a config is put together."""
    order = re.findall(r"^  - (?:optional )?(\w+)[:@]", (CONF / "config.yaml").read_text(), re.M)
    found = [path.name for path in CONF.iterdir() if path.is_dir()]
    shipped = [name for name in found if name not in ("hydra", "local")]
    return sorted(shipped, key=lambda name: order.index(name) if name in order else len(order))


def files(group: str) -> list[Path]:
    """Return the files of a group; those that only others build on, with an underscore, first."""
    paths = (CONF / group).rglob("*.yaml")
    return sorted(paths, key=lambda path: (path.name[0] != "_", path.parent, natural(path.stem)))


def natural(name: str) -> list[str | int]:
    """Return a key that sorts vgg11 before vgg110 and after vgg9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def name_of(path: Path) -> str:
    """Return what a command line calls a file: `lenet5`, or `lesson/xor`."""
    return str(path.relative_to(CONF / path.relative_to(CONF).parts[0]).with_suffix(""))


def header(path: Path) -> list[str]:
    """Return the lines of the comment at the top of a file, without their signs."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").removeprefix(" "))
    return lines


def body(path: Path) -> str:
    """Return a file without the comment at its top."""
    lines = path.read_text().splitlines()
    first = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(lines[first:]).strip()


def summary(path: Path) -> str:
    """Return the first sentence of the comment at the top of a file."""
    text = " ".join(" ".join(header(path)).split())
    end = re.search(r"(?<!\bal)(?<!\b[A-Z])[.?](?= )|:(?= (?:python |make |\w+=))", text)
    first = text[: end.start()] + end[0].replace(":", ".") if end else text
    return first.replace("|", r"\|")


def docstring(target: str) -> str | None:
    """Return the docstring of what `_target_` names in this project, without importing it."""
    module, _, name = target.rpartition(".")
    path = SOURCE / (module.replace(".", "/") + ".py")
    if not path.is_file():
        return None
    kinds = ast.ClassDef | ast.FunctionDef
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, kinds) and node.name == name:
            return ast.get_docstring(node)
    return None


def choices() -> str:
    """Return a table of the choices of each group: their names, and what each one is."""
    parts = []
    for group in groups():
        rows = [p for p in files(group) if not p.name.startswith("_")]
        table = [f"| `{name_of(path)}` | {summary(path)} |" for path in rows]
        parts.append(f"## {group}\n\n| {group}= | |\n|---|---|\n" + "\n".join(table) + "\n")
    return "\n".join(parts)


def pages() -> Iterator[tuple[str, str]]:
    """Return the pages of the reference: the name of each and its text."""
    main = (CONF / "config.yaml").read_text()
    intro = "Every key that is in no group, and the choice of each group unless another is made."
    yield "config", f"# The config as a whole\n\n{intro}\n\n{code('yaml', main)}"
    for group in groups():
        sections, explained = [f"# {group}"], set[str]()
        for path in files(group):
            name, text = name_of(path), "\n".join(header(path)).strip()
            shared = path.name.startswith("_")
            title = f"Shared: {name}" if shared else name
            sections += [f"## {title}", code("text", text) if "  " in text else text]
            if body(path) not in ("", "{}"):
                sections.append(code("yaml", body(path)))
            for target in re.findall(r"_target_: (experiments\S+)", path.read_text()):
                if target not in explained and (doc := docstring(target)):
                    explained.add(target)
                    sections.append(f"What `{target}` says:\n\n{code('text', doc)}")
        yield group, "\n\n".join(filter(None, sections))


def code(language: str, text: str) -> str:
    """Return a block of code in Markdown."""
    return f"```{language}\n{text.strip()}\n```\n"


def with_tables(page: str) -> str:
    """Return the text of `docs/choices.md` with the tables that `conf/` gives."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + "\n" + choices() + "\n" + END + rest.partition(END)[2]


def main() -> None:
    """Write the reference."""
    folder = ROOT / "docs" / "reference"
    folder.mkdir(exist_ok=True)
    names = []
    for name, text in pages():
        (folder / f"{name}.md").write_text(text + "\n")
        names.append(name)
    text = "Every file of `conf/`, with its comments, and what the code behind it says of itself.\n"
    tree = "\n".join(["```{toctree}", ":maxdepth: 1", "", *names, "```"])
    (folder / "index.md").write_text(f"# Reference of the config\n\n{text}\n{tree}\n")
    CHOICES.write_text(with_tables(CHOICES.read_text()))


if __name__ == "__main__":
    main()
