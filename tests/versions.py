"""Run the core tests on every Python that is here, with the oldest and the newest JAX for each.

    make test-versions                       # all of them
    python tests/versions.py 3.12 3.13       # these

The oldest JAX is the lower bound of `pyproject.toml`, the newest the one that `requirements.lock`
pins for that Python. Each pair gets a new environment below `build/versions`.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
CHOSEN_WITH_JAX = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "libtpu")


def interpreter(version: str) -> str | None:
    """The path of a Python of this version that starts, from PATH or among pyenv's."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = [shutil.which(f"python{version}"), *sorted(versions.glob(f"{version}.*/bin/python"))]
    for path in filter(None, found):
        if subprocess.run([path, "-c", "import venv"], capture_output=True).returncode == 0:
            return str(path)
    return None


def oldest_jax() -> str:
    """The lower bound of the dependency on JAX, as a full version."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        dependencies = tomllib.load(file)["project"]["dependencies"]
    bound = next(found[1] for d in dependencies if (found := re.match(r"jax>=([\d.]+)", d)))
    return bound + ".0" * (2 - bound.count("."))


def constraints(folder: Path, oldest: bool) -> Path:
    """The lock file, for the oldest JAX without what follows from the version of JAX."""
    if not oldest:
        return ROOT / "requirements.lock"
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    own = [line for line in lines if line.partition("==")[0] not in CHOSEN_WITH_JAX]
    path = folder.with_suffix(".txt")
    path.write_text("\n".join([*own, f"jax=={oldest_jax()}"]))
    return path


def test(python: str, folder: Path, oldest: bool) -> tuple[str, str]:
    """Install into a new environment and run the core tests; (version of JAX, what came of it)."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    own, uv = str(folder / "bin" / "python"), [sys.executable, "-m", "uv"]
    pinned = str(constraints(folder, oldest))
    subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", python, folder], check=True)
    install = ["pip", "install", "--quiet", "--python", own, "-c", pinned, "-e", ".[dev]"]
    subprocess.run([*uv, *install], check=True, cwd=ROOT)
    show = [own, "-c", "import importlib.metadata as m; print(m.version('jax'))"]
    jax = subprocess.run(show, check=True, capture_output=True, text=True).stdout.strip()
    print(f"-- Python {folder.name.partition('-')[0]}, jax {jax}", flush=True)
    core = [own, "-m", "pytest", "-m", "core", "-n", "2", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(core, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(done.stdout)
    return jax, done.stdout.strip().splitlines()[-1].strip("= ")


def main() -> int:
    """Test all pairs and print a table; 1 if a test failed, or a Python is not here as asked."""
    wanted, rows = sys.argv[1:] or PYTHONS, []
    for version in wanted:
        if (python := interpreter(version)) is None:
            rows.append((version, "", "", "not on this machine"))
            continue
        for which in ("oldest", "newest"):
            folder = ROOT / "build" / "versions" / f"{version}-{which}"
            rows.append((version, which, *test(python, folder, which == "oldest")))
    print("\n| Python | jax | | core tests |\n|---|---|---|---|")
    for version, which, jax, outcome in rows:
        print(f"| {version} | {jax} | {which} | {outcome} |")
    wrong = ("failed", "error", *["not on this machine"] * (len(sys.argv) > 1))
    return int(any(word in row[-1] for row in rows for word in wrong))


if __name__ == "__main__":
    sys.exit(main())
