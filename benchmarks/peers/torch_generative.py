"""The models of `benchmarks/steps.py` that reconstruct or make images, in PyTorch; 28x28, grey."""

import itertools
from collections.abc import Sequence

import torch
from torch import nn

PIXELS = 28 * 28


def dense(sizes: Sequence[int]) -> list[nn.Module]:
    """Dense layers, each with a rectifier after it."""
    pairs = itertools.pairwise(sizes)
    return [layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())]


class Autoencoder(nn.Module):
    """784-512-256-32 and back, for half the squared error of an example."""

    def __init__(self) -> None:
        super().__init__()
        encoder = [*dense((PIXELS, 512, 256)), nn.Linear(256, 32)]
        self.layers = nn.Sequential(*encoder, *dense((32, 256, 512)), nn.Linear(512, PIXELS))

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """The mean over the batch."""
        x = images.flatten(1)
        return 0.5 * nn.functional.mse_loss(self.layers(x), x, reduction="sum") / len(x)


class VAE(nn.Module):
    """`conf/model/vae.yaml`: 784-400-200-20 and back, Bernoulli pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*dense((PIXELS, 400, 200)), nn.Linear(200, 2 * 20))
        self.decoder = nn.Sequential(*dense((20, 200, 400)), nn.Linear(400, PIXELS))

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """The negative bound, the mean over the batch."""
        x = images.flatten(1)
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        entropy = nn.functional.binary_cross_entropy_with_logits
        reconstruction = entropy(self.decoder(z), x, reduction="sum")
        kl = 0.5 * torch.sum(mean**2 + log_variance.exp() - log_variance - 1)
        return (reconstruction + kl) / len(x)


class DCGAN(nn.Module):
    """`conf/model/dcgan.yaml`: sub-pixel convolutions up, strided convolutions down."""

    LATENTS = 64

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(self.LATENTS, 64 * 7 * 7),
            nn.Unflatten(1, (64, 7, 7)),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 4 * 32, 3, padding=1),
            nn.PixelShuffle(2),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 4, 3, padding=1),
            nn.PixelShuffle(2),
            nn.Tanh(),
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, 32, 3, stride=2, padding=1),
            nn.LeakyReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.LeakyReLU(),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 1),
        )
