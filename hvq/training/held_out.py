"""What looks at held-out data say as training goes: which weights were best, when to stop, and over-fitting."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hvq.distributed import Reduction
from hvq.errors import DataError
from hvq.training.sharding import as_shards, reshard

# Share of the best score by which a later one is clearly worse; looks at moving averages differ by less than that.
_CLEARLY_WORSE = 0.02


class HeldOutRecord:
    """Scores of looks at held-out data, the lower the better, beside the loss in training.

    `tensors` is all of it, for a checkpoint to keep: what is decided after a resume is what would have been.

    Args:
        patience: looks in a row without improvement after which training is to stop; 0 for never.

    >>> record, layer = HeldOutRecord(patience=2), nn.Linear(1, 1)
    >>> for step, score in enumerate([3.0, 2.0, 2.5, 2.1]):
    ...     record.add_training(4.0 - step)
    ...     _ = record.offer(layer, score, step)
    >>> record.best_step, record.score, record.training_at_best, record.stops
    (1, 2.0, 3.0, True)
    """

    def __init__(self, patience: int = 0) -> None:
        self.patience = patience
        self.tensors: dict[str, Tensor] = {}

    @property
    def score(self) -> float:
        """The best score; infinite while there is none."""
        return self._number("score", math.inf)

    @property
    def best_step(self) -> int:
        """The step of the look that gave it; 0 while there is none."""
        return int(self._number("step", 0))

    @property
    def training_at_best(self) -> float:
        """Mean loss in training over the steps that led to that look."""
        return self._number("training_at_best", math.nan)

    @property
    def looks_since_best(self) -> int:
        """Looks without improvement, in a row."""
        return int(self._number("looks_since_best", 0))

    @property
    def stops(self) -> bool:
        """Whether patience is at an end."""
        return 0 < self.patience <= self.looks_since_best

    def add_training(self, loss: float) -> None:
        """Take in the training loss of one step."""
        self.tensors["training"] = self._training() + torch.tensor([loss, 1.0], dtype=torch.float64)

    def offer(self, model: nn.Module, score: float, step: int) -> float:
        """Take in one look, and the weights that were looked at where it is better than any before.

        Args:
            model: with the weights that were looked at.
            score: of the look.
            step: after which it was.

        Returns:
            Mean training loss over the steps since the look before.
        """
        total, count = self._training().tolist()
        training = total / count if count else math.nan
        self.tensors.pop("training", None)
        if score < self.score:
            self.tensors.update({f"weights/{key}": tensor.clone() for key, tensor in model.state_dict().items()})
            self._keep(score=score, step=step, training_at_best=training, looks_since_best=0)
        else:
            self._keep(looks_since_best=self.looks_since_best + 1)
        return training

    def finds_overfitting(self, score: float, training: float) -> bool:
        """Whether held-out data fare clearly worse than at best while training data fare better; true once at most.

        Args:
            score: of a look.
            training: what `offer` gave for it.
        """
        worse = score > self.score + _CLEARLY_WORSE * abs(self.score)
        found = worse and training < self.training_at_best and not self._number("overfitting_found", 0)
        if found:
            self._keep(overfitting_found=1)
        return found

    def restore(self, model: nn.Module) -> None:
        """Put the best weights into the model.

        Raises:
            DataError: where no score was ever finite.
        """
        prefix = "weights/"
        weights = {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}
        if not weights:
            raise DataError("the loss on held-out data was never finite; lower learning_rate, or look at the data")
        reshard(model)
        model.load_state_dict(as_shards(weights, model.state_dict()))

    def kept_tensors(self, reduction: Reduction) -> dict[str, Tensor]:
        """All of it, which is the same on all processes."""
        return self.tensors

    def take_back(self, tensors: dict[str, Tensor], reduction: Reduction) -> None:
        """Go on from what `kept_tensors` gave."""
        # Copies: what was read may be mapped onto a file that goes when there are newer ones.
        self.tensors = {name: tensor.clone() for name, tensor in tensors.items()}

    def _training(self) -> Tensor:
        """Sum and number of the training losses since the last look."""
        return self.tensors.get("training", torch.zeros(2, dtype=torch.float64))

    def _number(self, name: str, default: float) -> float:
        return float(self.tensors[name]) if name in self.tensors else default

    def _keep(self, **numbers: float) -> None:
        self.tensors.update({name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()})
