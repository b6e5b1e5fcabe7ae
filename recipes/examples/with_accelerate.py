"""The same loop with accelerate, on one process or many: gradients by DDP, and the codebooks in one collective a step.

ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 recipes/examples/with_accelerate.py
accelerate launch --num_processes 8 recipes/examples/with_accelerate.py
"""

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from sklearn.datasets import load_digits
from torch import Tensor

from hvq.autoencoders import (
    Autoencoder,
    AutoencoderLoss,
    convolutional_autoencoder,
    initialize_codebooks,
    weights_channels_last,
)
from hvq.distributed import current_reduction
from hvq.quantizers import CodebookStep


def train(images: Tensor, steps: int, batch_size: int = 64) -> Autoencoder:
    """Train on images `[N, C, H, W]` in [-1, 1], `batch_size` of them in each process."""
    # No forward writes a buffer, so none has to be sent.
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)])
    torch.manual_seed(0)
    levels = {
        "top": {"ratio": 2, "codebook_size": 32},
        "bottom": {"ratio": 2, "codebook_size": 64},
    }
    model = weights_channels_last(convolutional_autoencoder(channels=images.shape[1], levels=levels))
    reduction = current_reduction()
    own = images[reduction.rank :: reduction.size]
    initialize_codebooks(model, own.split(batch_size), reduction)
    wrapped, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    codebooks = CodebookStep(model.quantizers, optimizer)
    loss = AutoencoderLoss()
    torch.manual_seed(reduction.rank)
    for step in range(steps):
        batch = own[torch.randint(len(own), (batch_size,))].to(accelerator.device)
        result = wrapped(batch)
        codebooks.add(result.levels)
        total, terms = loss(result, batch)
        optimizer.zero_grad()
        accelerator.backward(total)
        optimizer.step()
        codebooks.step(reduction)  # the same codebooks on every process
        if step % 50 == 0:
            accelerator.print(f"step {step}: reconstruction {terms['reconstruction']:.4f}")
    return model.eval()


def main(steps: int = 300) -> None:
    """Train on scanned digits."""
    digits = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1
    train(digits, steps)


if __name__ == "__main__":
    main()
