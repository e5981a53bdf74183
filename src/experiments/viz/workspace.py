"""W&B dashboards as code: a saved view for each family of models, and a report.

`python report.py <study, folder of runs, or project> wandb=workspace` builds them with
wandb-workspaces. A family is an objective: what is worth looking at depends on it and not on the
model.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.core.config import leaves, locate
from experiments.errors import UserError
from experiments.tracking.wandb import STATE

PARAMETERS = ("optim.learning_rate", "optim.weight_decay", "model.dropout", "data.batch_size")
"""What a view shows where no runs at hand say what was varied."""

PARTS_OF_SEARCHES = ("model", "objective", "loss", "init", "optim", "schedule", "data", "seed")
MOST_PARAMETERS = 8  # axes that fit a plot of parallel coordinates
LOGARITHMIC = ("learning_rate", "weight_decay", "l1", "l2", "beta", "scale", "stddev")
SYSTEM = ("cpu", "memory_percent", "gpu.0.gpu", "gpu.0.memoryAllocated", "proc.memory.rssMB")


@dataclass(frozen=True)
class Reviewed:
    """A run as its folder tells it."""

    id: str
    config: Mapping[str, Any]  # flat
    best: Mapping[str, float]
    media: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """One kind of objective: its name, the metric that decides, and what was varied and drawn."""

    name: str
    metric: str  # such as val/accuracy
    goal: str  # max or min
    parameters: tuple[str, ...]
    media: tuple[str, ...]
    ranked: tuple[str, ...] = ()  # ids of runs, best first


def publish(target: str, conf: Path) -> None:
    """Builds the dashboards of a folder or a project; saves them in W&B, or else as JSON files.

    Raises:
        UserError: wandb-workspaces is missing, or the folder holds no run that W&B has seen.
    """
    try:
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError as error:
        raise UserError("wandb=workspace needs: pip install 'experiments[dashboard]'") from error
    import wandb

    folder = Path(target)
    if folder.is_dir():
        entity, project, families = families_of(folder)
    else:
        entity, _, project = target.rpartition("/")
        families, folder = every_family(conf), Path()
    online = wandb.login(prompt=False, verify=False)
    # without one nobody can be asked about the project
    entity = (entity or wandb.Api().default_entity or "") if online else ""
    for family in families:
        view = workspace(family, entity, project)
        if online:
            view.save()
            print(f"{family.name}: {view.url}")
        else:
            _write(folder / f"workspace_{family.name}.json", specification(view))
    document = report(families, entity, project)
    if online:
        document.save()
        print(f"report: {document.url}")
    else:
        _write(folder / "workspace_report.json", specification(document))
        print("no W&B account is configured here; after `wandb login` the same command saves them")


def families_of(folder: Path) -> tuple[str, str, list[Family]]:
    """(entity, project, families) of the runs below a folder that W&B has seen."""
    runs = []
    for state in sorted(folder.rglob(STATE)):
        config = yaml.safe_load((state.parent / ".hydra" / "config.yaml").read_text())
        summary = state.parent / "summary.json"
        best = json.loads(summary.read_text()).get("best", {}) if summary.is_file() else {}
        media = tuple(sorted(path.stem for path in state.parent.glob("figures/*.png")))
        flat = dict(leaves(config))
        runs.append(Reviewed(json.loads(state.read_text())["id"], flat, best, media))
    if not runs:
        raise UserError(f"no run below {folder} was logged to W&B; train with logger=wandb")
    grouped: dict[str, list[Reviewed]] = {}
    for run in runs:
        grouped.setdefault(run.config["objective._target_"], []).append(run)
    families = [_family(target, members) for target, members in grouped.items()]
    first = runs[0].config
    return first.get("logger.entity") or "", first["logger.project"], families


def every_family(conf: Path) -> list[Family]:
    """A family for each objective that ships, with the usual parameters."""
    paths = sorted((conf / "objective").glob("[!_]*.yaml"))
    targets = {yaml.safe_load(path.read_text())["_target_"] for path in paths}
    return [_family(target, []) for target in sorted(targets)]


def _family(target: str, runs: Sequence[Reviewed]) -> Family:
    metric, goal = locate(target).monitor
    metric = f"val/{metric}"
    sign = -1 if goal == "max" else 1
    ranked = sorted((r for r in runs if metric in r.best), key=lambda r: sign * r.best[metric])
    media = tuple(dict.fromkeys(name for run in runs for name in run.media))
    return Family(
        target.rpartition(".")[2],
        metric,
        goal,
        varied(runs) or PARAMETERS,
        media,
        tuple(run.id for run in ranked),
    )


def varied(runs: Sequence[Reviewed]) -> tuple[str, ...]:
    """The config values in which runs differ, by dotted path."""
    seen: dict[str, set[str]] = {}
    for run in runs:
        for path, value in run.config.items():
            if path.partition(".")[0] in PARTS_OF_SEARCHES and not path.endswith("_target_"):
                seen.setdefault(path, set()).add(str(value))
    return tuple(path for path, values in seen.items() if len(values) > 1)[:MOST_PARAMETERS]


def colours(count: int) -> list[str]:
    """From the best to the worst rank, bright to dark, as hexadecimal."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    last = max(count - 1, 1)
    return [to_hex(colormaps["viridis"](1 - rank / last)) for rank in range(count)]


def panels(family: Family) -> dict[str, list[Any]]:
    """The panels of a family by the title of their section."""
    import wandb_workspaces.reports.v2 as wr

    best = wr.SummaryMetric(f"best.{family.metric}")
    numbers = [name for name in family.parameters if name.endswith(LOGARITHMIC)]
    axes = [
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(name), log=name in numbers or None)
        for name in family.parameters
    ]
    axes.append(wr.ParallelCoordinatesPlotColumn(metric=best))
    scatter = [
        wr.ScatterPlot(title=f"{family.metric} by {name}", x=wr.Config(name), y=best, log_x=True)
        for name in dict.fromkeys(["optim.learning_rate", *numbers])
    ]
    shown: dict[str, list[Any]] = {
        "Validation": [
            wr.LinePlot(title=name, x="epoch", y=[name])
            for name in dict.fromkeys([family.metric, "val/loss"])
        ],
        "Training": [
            wr.LinePlot(title=name, x="epoch", y=[name])
            for name in ("train/loss", "learning_rate", "grad_norm", "examples_per_second")
        ],
        "Search": [
            wr.ParallelCoordinatesPlot(columns=axes),
            wr.ParameterImportancePlot(with_respect_to=f"best.{family.metric}"),
            *scatter,
        ],
        "Comparison": [wr.RunComparer(diff_only="split")],
        "System": [wr.LinePlot(title=name, y=[f"system/{name}"]) for name in SYSTEM],
    }
    if family.media:
        shown["Figures"] = [wr.MediaBrowser(title=name, media_keys=[name]) for name in family.media]
    return shown


def workspace(family: Family, entity: str, project: str) -> Any:
    """The saved view of a family: its own runs, best first and coloured by rank."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.expr import Ordering, Summary, Tags

    shades = zip(family.ranked, colours(len(family.ranked)), strict=True)
    view = ws.Workspace(
        entity=entity,
        project=project,
        name=family.name,
        sections=[
            ws.Section(name=title, panels=inside, is_open=title != "System")
            for title, inside in panels(family).items()
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=[Tags().isin([family.name])],
            order=[Ordering(Summary(f"best.{family.metric}"), ascending=family.goal == "min")],
            run_settings={run: ws.RunSettings(color=shade) for run, shade in shades},
            pinned_columns=[f"summary:best.{family.metric}"],
        ),
    )
    return _with_exact_keys(view)


def report(families: Sequence[Family], entity: str, project: str) -> Any:
    """One document with the panels of every family."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.expr import Tags

    blocks: list[Any] = [wr.TableOfContents()]
    for family in families:
        runs = wr.Runset(
            entity=entity,
            project=project,
            name=family.name,
            filters=[Tags().isin([family.name])],
            order=[wr.OrderBy(f"best.{family.metric}", ascending=family.goal == "min")],
        )
        blocks.append(wr.H1(family.name))
        for title, inside in panels(family).items():
            blocks += [wr.H2(title), wr.PanelGrid(runsets=[runs], panels=inside)]
    title = f"What the runs of {project} came to"
    return _with_exact_keys(wr.Report(entity=entity, project=project, title=title, blocks=blocks))


def specification(dashboard: Any) -> dict[str, Any]:
    """What W&B keeps of a saved view or a report."""
    return json.loads(dashboard._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))


def _with_exact_keys(dashboard: Any) -> Any:
    """Makes it refer to config values as runs have them: the key optim.learning_rate is flat.

    wandb-workspaces takes the dots of a key for levels and writes optim.value.learning_rate.
    """
    model_of = dashboard._to_model

    def model() -> Any:
        made = model_of()
        text = made.spec.model_dump_json(by_alias=True, exclude_none=True)
        flat = re.sub(r'"config([:.])(\w+)\.value\.([\w.]+)"', r'"config\1\2.\3.value"', text)
        made.spec = type(made.spec).model_validate_json(flat)
        return made

    object.__setattr__(dashboard, "_to_model", model)  # past the checks of a pydantic dataclass
    return dashboard


def _write(path: Path, specification: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(specification, indent=1) + "\n")
    print(path)
