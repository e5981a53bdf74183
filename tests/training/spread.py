"""Trains configs as one population on several devices: spread.py configs folder devices.

The devices are eight that XLA simulates, or a processor's cores. The last config is trained to its
end, the others until the step `leave`.
"""

import json
import sys
from pathlib import Path

import jax

from experiments.tracking.jsonl import JsonLines
from experiments.tracking.tracker import Tracker, Trackers
from experiments.training import devices
from experiments.training import population_train as train
from experiments.training import population_width as width
from experiments.training.kept import Kept
from experiments.training.population_fit import fit_together, open_lane
from experiments.training.population_lane import Member
from experiments.training.signals import StopRequest


class LeaveAt(Tracker):
    may_stop = True

    def __init__(self, stop: StopRequest, step: int):
        self.stop, self.step, stop.status = stop, step, "pruned"

    def log(self, step, scalars):
        if step >= self.step:
            self.stop.name = "SIGTERM"


told, folder, kind = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), sys.argv[3]
if kind == "cores":
    devices.cores = lambda: 2  # whatever this machine has
    devices.split_processor(len(told["configs"]))
width.TINY_LANES = 1  # as of larger models
assert jax.local_device_count() == (2 if kind == "cores" else 8)
kept, members = Kept(), []
for config in told["configs"]:
    directory = folder / config["name"]
    directory.mkdir(parents=True)
    stop = StopRequest()
    leaves = told["leave"] is not None and config is not told["configs"][-1]
    trackers = Trackers([JsonLines(), *([LeaveAt(stop, told["leave"])] if leaves else [])])
    members.append(Member(open_lane(config, kept), directory, trackers, stop))

sizes = []
restack = train.Population._restack


def noted(self, rows=None):
    restack(self, rows)
    sizes.append((self.shared.mesh.size, self.rows))
    data = next(iter(self.shared.feed.arrays.values())).addressable_shards
    places = {shard.data.unsafe_buffer_pointer() for shard in data}
    assert len(data) == self.shared.mesh.size
    assert kind != "cores" or len(places) == 1  # one copy for all


train.Population._restack = noted
fit_together(members, folder / "all", test=False)
alone = members[0].session.mesh.size
print(json.dumps({"sizes": sizes, "alone": alone}))
