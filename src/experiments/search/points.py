"""The values of trials that are decided before they begin: grids, lists, points to start from."""

import csv
import itertools
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import UserError, suggest
from experiments.search.goals import COSTS
from experiments.search.space import Parameter, Space, path_of

if TYPE_CHECKING:
    from experiments.search.plan import Plan

log = logging.getLogger(__name__)

Point = dict[str, Any]  # values by parameter, as Optuna stores them

RESULTS = "results.csv"  # in the folder of a study
COLUMNS = ("trial", "state", "value", "front", "seconds", "run")
"""Its columns that are no keys of the config, beside metrics."""

BEST = 5  # trials of another study that a search starts from


def laid_down(plan: "Plan", space: Space) -> list[Point]:
    """Return what is decided of each trial of the budget; the rest is drawn when it begins.

    A grid is all of it. Random search over lists draws no combination twice, so that is decided
    here, too.
    """
    if plan.method == "grid":
        grid = space.grid(plan.n_trials)
        return [_stored(grid[i], space) for i in range(plan.n_trials)]
    found: list[Point] = [dict(point) for point in plan.points[: plan.n_trials]]
    if plan.method == "random" and space.finite:
        most_ = most(plan.method, plan.n_trials, space)
        new = (point for point in _distinct(space, plan.seed, most_) if point not in found)
        found += itertools.islice(new, plan.n_trials - len(found))
    return found + [{}] * (plan.n_trials - len(found))


def most(method: str, n_trials: int | None, space: Space) -> int | None:
    """Return the trials that a study can have where each has other values; None: enough."""
    if method == "grid":
        return space.grid(n_trials).size
    if method != "random" or not space.finite:
        return None
    choices = math.prod(map(len, space.groups.values()))  # each is a combination at least
    return None if n_trials and n_trials <= choices else space.grid(None).size


def read(path: str, space: Space) -> list[Point]:
    """Return the points of a CSV file: a column a key, a row a trial; empty values are drawn.

    Raises:
        UserError: it cannot be read, or a line has what is not searched.
    """
    found = []
    for number, row in _rows(Path(path)):
        try:
            found.append(_point(row, space))
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from error
    if not any(found):
        raise UserError(f"{path}: there are no points in it; a line of keys, then one a trial")
    return found


def of_study(folder: Path, goal: Sequence[str], space: Space) -> list[Point]:
    """Return the best trials of a study as points of another one, as far as they are in its space.

    Of several metrics they are those of the front.
    """
    rows = [row for _, row in _rows(folder / RESULTS) if row["state"] == "finished"]
    if len(goal) == 1:
        sign = 1 if goal[0] == "minimize" else -1
        rows.sort(key=lambda row: sign * float(row["value"]))
    else:
        rows = [row for row in rows if row["front"] == "true"]
    found = []
    for row in rows[:BEST]:
        try:
            found.append(_point({k: v for k, v in row.items() if k in space.paths}, space))
        except UserError as error:
            log.warning("warning: trial %s of %s is left out: %s", row["trial"], folder, error)
    if not any(found):
        raise UserError(f"from={folder}: none of its trials is in what is searched here")
    return found


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the lines of a table by number; raises `UserError` if it cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(f"{path}:{reader.line_num}: not as many values as the header")
                yield reader.line_num, row
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: this is no CSV in UTF-8: {error}") from error


def _point(row: Mapping[str, str], space: Space) -> Point:
    """Return a line of a table as a point; raises `UserError` for what is not searched."""
    point: Point = {}
    for path, text in row.items():
        own = [name for name in space.parameters if path in (name, path_of(name))]
        if not own and not (path in (*COLUMNS, *COSTS) or path.startswith("val/")):
            raise UserError(f"{path}: this is not searched{suggest(path, space.paths)}")
        if not own or not text.strip():
            continue
        (override,) = space.configs.parse([f"{own[0].partition('@')[0]}={text}"])
        if override.is_sweep_override():
            raise UserError(f"{path}={text}: a point has one value of each; quote a text")
        value = override.value()
        refused = None
        for name in own:
            try:
                point[name] = space.parameters[name].stored(value)
            except UserError as error:
                refused = error
        if refused is not None and not point.keys() & set(own):
            raise UserError(f"{path}={text}: {refused}") from refused
    return point


def _stored(point: Mapping[str, Any], space: Space) -> Point:
    return {name: space.parameters[name].stored(value) for name, value in point.items()}


def _distinct(space: Space, seed: int, most: int | None) -> Iterator[Point]:
    """Draw combinations of a finite space, each once; a larger budget has those of a smaller."""
    numbers, drawn = random.Random(seed), set[str]()
    while most is None or len(drawn) < most:
        values: dict[str, Any] = {}

        def draw(name: str, parameter: Parameter, values: dict[str, Any] = values) -> Any:
            every = parameter.points or ()
            values[name] = every[numbers.randrange(len(every))]
            return values[name]

        space.draw(draw)
        if (key := repr(sorted(values.items()))) not in drawn:
            drawn.add(key)
            yield _stored(values, space)
