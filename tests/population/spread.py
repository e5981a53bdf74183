"""Trains the configs of a JSON file as one population on all devices: spread.py configs folder."""

import json
import sys
from pathlib import Path

import jax

from experiments.population.fit import fit_together, open_lane
from experiments.population.lane import Member
from experiments.tracking.jsonl import JsonLines
from experiments.tracking.tracker import Trackers
from experiments.training.kept import Kept
from experiments.training.signals import StopRequest

configs, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
assert jax.local_device_count() == 8
kept, members = Kept(), []
for config in configs:
    directory = folder / config["name"]
    directory.mkdir(parents=True)
    trackers = Trackers([JsonLines()])
    members.append(Member(open_lane(config, kept), directory, trackers, StopRequest()))
fit_together(members, folder / "all", test=False)
