"""Any encoder and decoder of one's own in a level: here a patch embedding and its inverse, with residual quantization.

python recipes/examples/own_network.py
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from hvq.autoencoders import Autoencoder, AutoencoderLoss, Level, initialize_codebooks
from hvq.quantizers import CodebookStep, ResidualQuantizer, VectorQuantizer


def build() -> Autoencoder:
    """One level of 4x4 positions on 8x8 images, with three codes at each position."""
    level = Level(
        name="only",
        ratio=2,
        encoder=nn.Sequential(nn.Conv2d(1, 64, 2, stride=2), nn.GELU(), nn.Conv2d(64, 64, 3, padding=1)),
        projection=nn.Conv2d(64, 16, 1),
        quantizer=ResidualQuantizer(
            quantizers=[VectorQuantizer(codebook_size=32, code_dimension=16) for _ in range(3)]
        ),
        merge=None,
    )
    decoder = nn.Sequential(nn.Conv2d(16, 64, 3, padding=1), nn.GELU(), nn.ConvTranspose2d(64, 1, 2, stride=2))
    return Autoencoder(levels=[level], decoder=decoder)


def train(model: Autoencoder, images: Tensor, steps: int) -> float:
    """Train on images `[N, 1, H, W]` in [-1, 1]; the last reconstruction loss."""
    initialize_codebooks(model, images.split(64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    codebooks, loss, last = CodebookStep(model.quantizers, optimizer), AutoencoderLoss(), 0.0
    for _ in range(steps):
        batch = images[torch.randint(len(images), (64,))]
        result = model(batch)
        codebooks.add(result.levels)
        total, terms = loss(result, batch)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        codebooks.step()
        last = float(terms["reconstruction"])
    return last


def main(steps: int = 300) -> None:
    """Train on scanned digits."""
    digits = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1
    model = build()
    print(f"reconstruction {train(model, digits, steps):.4f}")
    print({name: list(codes.shape) for name, codes in model.eval().encode(digits[:1]).items()})


if __name__ == "__main__":
    main()
