"""The usual way to search: Optuna around a PyTorch training loop, in one process.

    python -m benchmarks.peers.torch_search mlp|lenet5 TRIALS EPOCHS DATA.npz

DATA.npz holds train_x, train_y, val_x, val_y: images as float32 NCHW, normalised. All data are
tensors in memory and a batch is one index operation, so no data loader stands in the way.
"""

import sys

import numpy as np
import optuna
import torch
from torch import nn

from benchmarks.peers.torch_classifiers import lenet5

BATCH = {"mlp": 64, "lenet5": 128}


def mlp(pixels: int) -> nn.Module:
    """The MLP of the benchmark: one hidden layer of 32."""
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 32), nn.ReLU(), nn.Linear(32, 10))


def main() -> None:
    name, trials, epochs, path = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    data = {key: torch.from_numpy(value) for key, value in np.load(path).items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    size = BATCH[name]

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
        torch.manual_seed(0)
        model = lenet5() if name == "lenet5" else mlp(data["train_x"][0].numel())
        optimizer = torch.optim.Adam(model.parameters(), rate)
        best = 0.0
        for _ in range(epochs):
            model.train()
            order = torch.randperm(len(data["train_x"]))
            for start in range(0, len(order) - size + 1, size):
                index = order[start : start + size]
                optimizer.zero_grad()
                logits = model(data["train_x"][index])
                loss = nn.functional.cross_entropy(logits, data["train_y"][index])
                loss.backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                hits = model(data["val_x"]).argmax(1) == data["val_y"]
            best = max(best, float(hits.float().mean()))
        return best

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=trials)


if __name__ == "__main__":
    main()
