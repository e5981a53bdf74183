"""PyTorch's side of `benchmarks/gpu.py`: compiled, channels last, bfloat16 by autocast.

    python -m benchmarks.peers.torch_gpu_step NAME [--quick]

As its own guides advise: the data are tensors on the GPU, a batch is one index operation, the
optimizer is fused, cuDNN chooses among its algorithms by trying them, what stays float32 may be
computed in TF32, gradients are set to None, and nothing is read back from a step. `--quick`
compiles nothing, and takes the processor where there is no GPU.

`torch.compile` leaves an LSTM to cuDNN, and autocast gives that float16, whatever it is asked for.
"""

import sys

import torch
from torch import nn

from benchmarks.gpu import CASES
from benchmarks.peers.torch_classifiers import LSTM
from benchmarks.peers.torch_images import AUXILIARY_WEIGHT, IMAGES
from benchmarks.peers.torch_step import FULL_BIAS, adam
from benchmarks.results import cores
from benchmarks.steps import BATCHES, sized
from benchmarks.turns import serve


def main() -> None:
    name, quick = sys.argv[1], "--quick" in sys.argv
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(cores())
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    case = sized(CASES[name], quick)
    size, (height, width, channels) = case.batch_size, case.image
    images = torch.rand(BATCHES * size, channels, height, width, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, case.classes, (BATCHES * size,), device=device)
    model = LSTM() if name == "gpu_lstm" else IMAGES[name](height, case.classes)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = adam(model)

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        outputs = model(images)
        logits, *halfway = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = nn.functional.cross_entropy(logits, labels)
        for output in halfway:
            loss = loss + AUXILIARY_WEIGHT * nn.functional.cross_entropy(output, labels)
        return loss

    loss_of = loss_of if quick else torch.compile(loss_of)

    def run(steps: int) -> None:
        order = torch.randperm(len(images), device=device)
        for index in range(steps):
            start = index % BATCHES * size
            rows = order[start : start + size]
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16):
                loss = loss_of(images[rows], labels[rows])
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    counted = [p.numel() for n, p in model.named_parameters() if FULL_BIAS not in n]
    serve(run, {"parameters": sum(counted)})


if __name__ == "__main__":
    main()
