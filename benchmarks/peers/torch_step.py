"""PyTorch's side of `benchmarks/steps.py`: the same models, losses and optimizers, eager.

    python -m benchmarks.peers.torch_step NAME [--quick] [--compile]

As its own guides advise: the data are tensors in memory, a batch is one index operation, the fused
optimizer, gradients set to None, all cores, and images in channels-last order where that costs no
more processor time. On one core that was 13.1 against 15.8 ms for LeNet-5, 145 against 199 for
ResNet-20 and 73 either way for DCGAN, but 413 against 387 for VGG-16. Nothing is read back from a
step.
"""

import sys

import torch
from torch import nn

from benchmarks.peers.torch_classifiers import CLASSIFIERS
from benchmarks.peers.torch_generative import DCGAN, VAE, Autoencoder
from benchmarks.results import cores
from benchmarks.steps import BATCHES, CASES, sized
from benchmarks.turns import serve

CHANNELS_LAST = ("lenet5", "resnet20", "dcgan")
FULL_BIAS = "bias_hh"  # PyTorch's LSTM has two biases for each gate, of which one would do


def adam(module: nn.Module, rate: float = 1e-3, b1: float = 0.9) -> torch.optim.Optimizer:
    """Adam in one kernel for all parameters."""
    return torch.optim.Adam(module.parameters(), rate, (b1, 0.999), fused=True)


def main() -> None:
    name, compiled = sys.argv[1], "--compile" in sys.argv
    torch.set_num_threads(cores())
    torch.manual_seed(0)
    case = sized(CASES[name], "--quick" in sys.argv)
    size = case.batch_size
    height, width, channels = case.image
    images = torch.rand(BATCHES * size, channels, height, width)
    labels = torch.randint(0, 10, (BATCHES * size,))
    model: nn.Module
    if name in CLASSIFIERS:
        model = CLASSIFIERS[name]()
    else:
        model = {"autoencoder": Autoencoder, "vae": VAE, "dcgan": DCGAN}[name]()
    if name in CHANNELS_LAST:
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    step = adversarial(model, compiled) if name == "dcgan" else supervised(name, model, compiled)

    def run(steps: int) -> None:
        order = torch.randperm(len(images))
        for index in range(steps):
            start = index % BATCHES * size
            rows = order[start : start + size]
            step(images[rows], labels[rows])

    counted = [p.numel() for n, p in model.named_parameters() if FULL_BIAS not in n]
    serve(run, {"parameters": sum(counted)})


def supervised(name: str, model: nn.Module, compiled: bool):
    """A step of one loss and one optimizer."""
    optimizer = adam(model)

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if name in CLASSIFIERS:
            return nn.functional.cross_entropy(model(images), labels)
        return model.loss(images)

    loss_of = torch.compile(loss_of) if compiled else loss_of

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss_of(images, labels).backward()
        optimizer.step()

    return step


def adversarial(model: DCGAN, compiled: bool):
    """A step of the discriminator and one of the generator, on the same samples."""
    generator, discriminator = model.generator, model.discriminator
    optimizers = adam(generator, 2e-4, 0.5), adam(discriminator, 2e-4, 0.5)
    generate = torch.compile(generator) if compiled else generator
    discriminate = torch.compile(discriminator) if compiled else discriminator
    entropy = nn.functional.binary_cross_entropy_with_logits

    def step(images: torch.Tensor, _: torch.Tensor) -> None:
        fake = generate(torch.randn(len(images), DCGAN.LATENTS))
        optimizers[1].zero_grad()
        on_real, on_fake = discriminate(images), discriminate(fake.detach())
        real, made = torch.ones_like(on_real), torch.zeros_like(on_fake)
        (entropy(on_real, real) + entropy(on_fake, made)).backward()
        optimizers[1].step()
        discriminator.requires_grad_(False)  # no gradients that nobody uses
        optimizers[0].zero_grad()
        entropy(discriminate(fake), real).backward()
        optimizers[0].step()
        discriminator.requires_grad_(True)

    return step


if __name__ == "__main__":
    main()
