"""An autoencoder of two levels in a training loop of one's own: no recipe, no configuration, no launcher.

python recipes/examples/plain_loop.py
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from hvq.autoencoders import Autoencoder, AutoencoderLoss, convolutional_autoencoder, initialize_codebooks
from hvq.quantizers import CodebookStep


def train(images: Tensor, steps: int, batch_size: int = 64) -> Autoencoder:
    """Train on images `[N, C, H, W]` in [-1, 1]."""
    levels = {
        "top": {"ratio": 2, "codebook_size": 32},
        "bottom": {"ratio": 2, "codebook_size": 64},
    }
    model = convolutional_autoencoder(channels=images.shape[1], levels=levels)
    initialize_codebooks(model, images.split(batch_size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    codebooks = CodebookStep(model.quantizers, optimizer)
    loss = AutoencoderLoss()
    for step in range(steps):
        batch = images[torch.randint(len(images), (batch_size,))]
        result = model(batch)  # writes nothing
        codebooks.add(result.levels)
        total, terms = loss(result, batch)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        codebooks.step()  # moving averages, revival of dead codes
        if step % 50 == 0:
            print(f"step {step}: reconstruction {terms['reconstruction']:.4f}, commitment {terms['commitment']:.4f}")
    return model.eval()


def main(steps: int = 300) -> None:
    """Train on scanned digits, and say what a digit is as codes."""
    digits = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1
    model = train(digits, steps)
    codes = model.encode(digits[:1])
    print({name: grid.tolist() for name, grid in codes.items()})


if __name__ == "__main__":
    main()
