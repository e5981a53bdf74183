"""Train configs side by side on several devices: spread.py configs folder devices.

The devices are eight that XLA simulates, or a processor's cores. The last config is trained to its
end, the others until the step `leave`.
"""

import json
import sys
from pathlib import Path

import jax

from experiments.machine import StopRequest
from experiments.tracking.tracker import Tracker
from experiments.training import runtime, stack
from experiments.training.loop import fit
from experiments.training.setup import Setups
from support import trial_of


class LeaveAt(Tracker):
    may_stop = True

    def __init__(self, stop: StopRequest, step: int):
        self.stop, self.step, stop.status = stop, step, "pruned"

    def log(self, step, scalars):
        if step >= self.step:
            self.stop.name = "SIGTERM"


given, folder, kind = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), sys.argv[3]
if kind == "cores":
    runtime.cores = lambda: 2  # whatever this machine has
    runtime.split_processor(len(given["configs"]))
runtime.TINY_TRIALS, runtime.WORTH_SHARING = 1, 0  # as of larger models
assert jax.local_device_count() == (2 if kind == "cores" else 8)
setups, trials = Setups(), []
for config in given["configs"]:
    stop = StopRequest()
    leaves = given["leave"] is not None and config is not given["configs"][-1]
    trackers = [LeaveAt(stop, given["leave"])] if leaves else []
    trials.append(trial_of(config, folder / config["name"], *trackers, stop=stop, setups=setups))

sizes = []
place = stack.Stack._place


def noted(self, layout):
    place(self, layout)
    sizes.append((layout.mesh.size, layout.rows))
    data = next(iter(self.feed.arrays.values())).addressable_shards
    places = {shard.data.unsafe_buffer_pointer() for shard in data}
    assert len(data) == layout.mesh.size
    assert kind != "cores" or len(places) == 1  # one copy for all


stack.Stack._place = noted
fit(trials, folder / "all", test=False)
print(json.dumps(sizes))
