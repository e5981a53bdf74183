"""Train on eight devices that XLA simulates: simulated.py jobs.json.

A job is a list of configs that are trained side by side, each in the folder that is its name; what
a folder holds already is gone on with. Prints of each job the mesh, the rows, and the bytes of
states and best weights that the first and the last device hold.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import jax

from experiments.training import runtime, stack
from experiments.training.loop import fit
from experiments.training.setup import Setups
from support import trial_of

found: list = []
wait = stack.Stack.wait


def noted(self):
    wait(self)
    held: Counter = Counter()
    for leaf in jax.tree.leaves(self.saved):
        for shard in leaf.addressable_shards:
            held[shard.device.id] += shard.data.nbytes
    mesh = self.layout.mesh.shape
    found.append([mesh["trial"], mesh["data"], self.layout.rows, held[0], held[7]])


stack.Stack.wait = noted  # type: ignore[method-assign]
runtime.WORTH_SHARING = 0  # as of larger models
assert jax.local_device_count() == 8
folder = Path(sys.argv[1]).parent
for configs in json.loads(Path(sys.argv[1]).read_text()):
    setups = Setups()
    trials = [trial_of(one, folder / one["name"], setups=setups) for one in configs]
    fit(trials, folder / "together", resume=True, test=False)
print(json.dumps(found))
