"""The same autoencoder as a LightningModule (`pip install lightning`); its codebooks learn in a hook.

python recipes/examples/with_lightning.py
"""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader

from hvq.autoencoders import AutoencoderLoss, convolutional_autoencoder, initialize_codebooks
from hvq.distributed import current_reduction
from hvq.quantizers import CodebookStep


class LitAutoencoder(lightning.LightningModule):  # type: ignore[misc]  # not always installed
    """An autoencoder of two levels.

    Args:
        first: images `[N, C, H, W]` in [-1, 1] that its codebooks are set from.
    """

    def __init__(self, first: Tensor) -> None:
        super().__init__()
        levels = {
            "top": {"ratio": 2, "codebook_size": 32},
            "bottom": {"ratio": 2, "codebook_size": 64},
        }
        self.model = convolutional_autoencoder(channels=first.shape[1], levels=levels)
        initialize_codebooks(self.model, first.split(64))
        self.codebooks = CodebookStep(self.model.quantizers)
        self.loss = AutoencoderLoss()

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        """The loss; what codebooks learn from is only noted."""
        result = self.model(batch)
        self.codebooks.add(result.levels)
        total, terms = self.loss(result, batch)
        self.log_dict(terms)
        return total

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Once after every optimizer step, also where gradients are accumulated; before the first there is nothing."""
        self.codebooks.step(current_reduction())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The weights' own; codebooks that learn by moving averages have none."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(steps: int = 300) -> None:
    """Train on scanned digits."""
    digits = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1
    module = LitAutoencoder(digits)
    trainer = lightning.Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, DataLoader(digits, batch_size=64, shuffle=True))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
