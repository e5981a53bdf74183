"""LeNet-5 on MNIST as people run it: PyTorch Lightning under Hydra, with W&B offline.

    python -m benchmarks.peers.lightning_mnist data=FILE.npz hydra.run.dir=FOLDER

The file is that of `benchmarks.images_for_peer`: the pixels are decoded and normalised already, and
a batch is cut from tensors in memory. An epoch, validation, a checkpoint of the best weights and
their test, as in `run.py model=lenet5 data=mnist trainer.epochs=1`.
"""

from dataclasses import dataclass
from pathlib import Path

import hydra
import lightning
import numpy as np
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.torch_classifiers import lenet5
from benchmarks.results import cores


@dataclass
class Config:
    """The keys of the command line."""

    data: str
    epochs: int = 1
    learning_rate: float = 1e-3
    batch_size: int = 128


class Classifier(lightning.LightningModule):
    """LeNet-5 under Adam; logs loss and accuracy."""

    def __init__(self, learning_rate: float):
        super().__init__()
        self.model, self.learning_rate = lenet5(), learning_rate

    def training_step(self, batch, index) -> torch.Tensor:
        return self._measure("train", batch)

    def validation_step(self, batch, index) -> None:
        self._measure("val", batch)

    def test_step(self, batch, index) -> None:
        self._measure("test", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.learning_rate, fused=True)

    def _measure(self, split: str, batch) -> torch.Tensor:
        images, labels = batch
        logits = self.model(images)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        accuracy = (logits.argmax(1) == labels).float().mean()
        self.log_dict({f"{split}/loss": loss, f"{split}/accuracy": accuracy})
        return loss


ConfigStore.instance().store("config", Config)


@hydra.main(version_base="1.3", config_path=None, config_name="config")
def main(config: Config) -> None:
    lightning.seed_everything(0)
    torch.set_num_threads(cores())
    folder = Path(HydraConfig.get().runtime.output_dir)
    arrays = {name: torch.from_numpy(array) for name, array in np.load(config.data).items()}

    def loader(split: str, size: int, **options) -> DataLoader:
        return DataLoader(
            TensorDataset(arrays[f"{split}_x"], arrays[f"{split}_y"]), size, **options
        )

    best = ModelCheckpoint(folder, monitor="val/accuracy", mode="max")
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=config.epochs,
        logger=WandbLogger(project="experiments", save_dir=folder, offline=True),
        callbacks=[best],
        default_root_dir=folder,
    )
    train = loader("train", config.batch_size, shuffle=True, drop_last=True)
    model = Classifier(config.learning_rate)
    trainer.fit(model, train, loader("val", 256))
    trainer.test(model, loader("test", 256), ckpt_path="best")


if __name__ == "__main__":
    main()
