"""How sure a classifier is of each image, and how evenly the images spread over its classes.

Letters: N samples, Y classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from hvq.errors import DataError

ROUNDING = 1e-4


class InceptionScore(Metric):  # type: ignore[misc]  # torchmetrics is not analysed, so its Metric is Any
    """exp of the mean divergence of each image's classes from those of all images, from 1 to the number of classes.

    exp(1/N sum_i KL(p(y | x_i) || p(y))) with p(y) the mean of p(y | x_i), of Salimans et al. (2016, arXiv 1606.03498),
    where the classes are Inception's; higher is better. It knows nothing of real images: a classifier that is sure of
    nonsense gives a high score. All images are one split: the mean over ten, as it was published, is lower the fewer
    images there are in each.

    Sums over samples are kept in float64, so it is equal for any batch size and, through `torchmetrics`, number of
    processes.

    Args:
        classes: Y.

    >>> score = InceptionScore(classes=2)
    >>> score.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> score.compute()
    2.0
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = True

    probabilities: Tensor
    negative_entropy: Tensor
    count: Tensor

    def __init__(self, *, classes: int) -> None:
        super().__init__()
        self.add_state("probabilities", torch.zeros(classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("negative_entropy", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor) -> None:
        """Add samples.

        Args:
            probabilities: floating point `[N, Y]`, of each class, rows of sum 1.

        Raises:
            DataError: where they are not.
        """
        classes = self.probabilities.shape[0]
        if probabilities.ndim != 2 or probabilities.shape[1] != classes or not probabilities.is_floating_point():
            raise DataError(
                f"probabilities must be floating point [N, {classes}]; received {probabilities.dtype} "
                f"{list(probabilities.shape)}"
            )
        probabilities = probabilities.to(self.probabilities)
        if len(probabilities):
            # NaN is neither at least 0 nor near 1.
            summing = ((probabilities.sum(1) - 1).abs() <= ROUNDING).all()
            if not bool(summing) or not bool((probabilities >= 0).all()):
                raise DataError("probabilities must not be negative, and sum to 1 in each row: apply softmax to logits")
        self.probabilities += probabilities.sum(0)
        self.negative_entropy -= torch.special.entr(probabilities).sum()
        self.count += len(probabilities)

    def compute(self) -> float:
        """The score, over all samples of all processes.

        Raises:
            DataError: where no sample was added.
        """
        count = int(self.count)
        if count == 0:
            raise DataError("the Inception score needs at least one image; none was added")
        entropy_of_mean = torch.special.entr(self.probabilities / count).sum()
        return float((self.negative_entropy / count + entropy_of_mean).exp())
