"""What features say: reconstructions against held-out images, and samples against training images.

Letters: n images, F features, Y classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hvq.chunks import map_chunks
from hvq.config import RunConfig
from hvq.data import spread_rows
from hvq.distributed import Reduction
from hvq.evaluation.classification import SMALLEST_SIDE
from hvq.evaluation.extractors import ClassifierExtractor, FeatureExtractor, InceptionExtractor
from hvq.evaluation.frechet import FrechetDistance
from hvq.evaluation.inception_score import InceptionScore
from hvq.evaluation.kernel_distance import KernelDistance, KernelScore
from hvq.evaluation.measured import Measured, Numbers, loaded_everywhere
from hvq.evaluation.own_classifier import own_classifier
from hvq.evaluation.precision_recall import ManifoldPrecisionRecall, PrecisionRecall
from hvq.evaluation.pretrained import load_inception_network
from hvq.storage import RunFolder


@dataclass(frozen=True)
class Seen:
    """This process's share of a set of images, as an extractor sees it.

    Attributes:
        features: float64 `[n, F]`.
        probabilities: float64 `[n, Y]`.
        numbers: int64 `[n]`, which of the set they are.
        total: images of the set, on all processes.
    """

    features: Tensor
    probabilities: Tensor
    numbers: Tensor
    total: int

    def among(self, rows: Tensor) -> Seen:
        """Those whose number is among `rows`."""
        here = torch.isin(self.numbers, rows.to(self.numbers.device))
        return Seen(self.features[here], self.probabilities[here], self.numbers[here], len(rows))

    def spread(self, most: int) -> Seen:
        """At most so many of the whole set, spread over all of it."""
        return self.among(torch.from_numpy(spread_rows(self.total, most)))


def build_extractor(
    config: RunConfig,
    run: RunFolder,
    training: dict[str, Tensor],
    *,
    num_classes: int,
    device: torch.device,
    reduction: Reduction,
) -> tuple[FeatureExtractor | None, str]:
    """The extractor that `evaluation.extractor` asks for, and an empty text; or None, and why there is none.

    Args:
        config: of the run.
        run: where a classifier of one's own lies, or is left.
        training: `images` and `labels` that such a classifier learns from.
        num_classes: of the labels.
        device: where it runs.
        reduction: over the processes.
    """
    if config.evaluation.extractor == "inception":
        network, reason = loaded_everywhere(load_inception_network, reduction, device)
        return (None, reason) if network is None else (InceptionExtractor(network.to(device)), "")
    if min(training["images"].shape[2:]) < SMALLEST_SIDE:
        return None, f"images are smaller than {SMALLEST_SIDE} pixels, the classifier's smallest"
    classifier = own_classifier(
        run.classifier,
        training["images"],
        training["labels"],
        num_classes=num_classes,
        steps=config.evaluation.classifier_steps,
        seed=config.seed,
        device=device,
        reduction=reduction,
    )
    return ClassifierExtractor(classifier), ""


def see(
    extractor: FeatureExtractor, images: Tensor, *, chunk_size: int, device: torch.device, reduction: Reduction
) -> Seen:
    """What an extractor sees in this process's share of images, in forwards of one fixed size.

    Args:
        extractor: on the device.
        images: uint8 `[n, C, H, W]`, the same on every process, at least one.
        chunk_size: images in each forward; processes take chunks in turn.
        device: where the extractor is.
        reduction: over the processes.
    """

    def forward(part: dict[str, Tensor]) -> dict[str, Tensor]:
        seen = extractor(part["images"].to(device))
        return {"features": seen.features.double(), "probabilities": seen.probabilities.double()}

    numbers = torch.arange(len(images))
    mine = numbers[numbers // chunk_size % reduction.size == reduction.rank]
    # A process without any still has to know how many features there are.
    parts = list(map_chunks(forward, {"images": images[mine] if len(mine) else images[:1]}, chunk_size))
    columns = {name: torch.cat([part[name] for part in parts])[: len(mine)] for name in parts[0]}
    return Seen(numbers=mine.to(device), total=len(images), **columns)


def frechet(real: Seen, fake: Seen) -> float:
    """Fréchet distance between two sets."""
    metric = FrechetDistance(features=real.features.shape[1]).to(real.features.device)
    metric.update(real.features, real=True)
    metric.update(fake.features, real=False)
    return float(metric.compute())


def precision_recall(real: Seen, fake: Seen, neighbours: int) -> PrecisionRecall | None:
    """Precision and recall of a set; None where one of them is too small for its manifold."""
    if min(real.total, fake.total) <= neighbours:
        return None
    metric = ManifoldPrecisionRecall(features=real.features.shape[1], neighbours=neighbours).to(real.features.device)
    metric.update(real.features, real=True)
    metric.update(fake.features, real=False)
    found: PrecisionRecall = metric.compute()
    return found


def measure_rfid(extractor: FeatureExtractor, held_out: Seen, restored: Seen) -> Measured:
    """Fréchet distance between held-out images and their reconstructions."""
    name = f"{extractor.kind}_rfid"
    about = (
        f"rFID: Fréchet distance between {held_out.total} held-out images and their reconstructions, {_on(extractor)}"
    )
    if restored.total < 2:
        return Measured({"reconstruction": {name: None}}, {f"reconstruction.{name}": "left out: there is one image"})
    text = f"{about}; lower is better{_caveat(held_out, held_out.total)}"
    return Measured({"reconstruction": {name: frechet(held_out, restored)}}, {f"reconstruction.{name}": text})


def measure_generation(
    extractor: FeatureExtractor, training: Seen, held_out: Seen, generated: Seen, *, neighbours: int, seed: int
) -> Measured:
    """FID, KID, Inception score, precision and recall of samples against training images.

    Held-out images get the same numbers beside them: what perfect samples would reach, but for their number.

    Args:
        extractor: that gave the features.
        training: real images to compare with.
        held_out: other real images.
        generated: samples.
        neighbours: k of precision and recall.
        seed: of the subsets of KID.
    """
    kind, equal = extractor.kind, min(training.total, held_out.total, generated.total)
    numbers: Numbers = {"extractor": described(extractor)}
    subsets: dict[str, str] = {}
    for ending, fake in (("", generated), ("_held_out", held_out)):
        kernel = _kernel_distance(training, fake, seed)
        values: Numbers = {"fid": None, "kid": None, "kid_deviation": None, "score": _score(fake)}
        if kernel is not None:
            values |= {"fid": frechet(training, fake), "kid": kernel.mean, "kid_deviation": kernel.deviation}
            subsets[ending] = f"{kernel.subsets} subset(s) of {kernel.subset_size}"
        manifolds = precision_recall(training.spread(equal), fake.spread(equal), neighbours)
        values["precision"], values["recall"] = manifolds or (None, None)
        numbers |= {f"{kind}_{name}{ending}": value for name, value in values.items()}
    on, real = _on(extractor), f"{training.total} training images"
    about = {
        "fid": f"FID: Fréchet distance between {generated.total} samples and {real}, {on}; lower is better"
        + _caveat(training, min(generated.total, training.total)),
        "kid": f"KID: kernel distance between {generated.total} samples and {real}, unbiased, mean over "
        f"{subsets.get('', 'none')}, with the deviation beside it, {on}; 0 is alike",
        "score": f"Inception score of {generated.total} samples as one split, {on}; from 1 to the number of classes, "
        "higher is better",
        "precision": f"share of {equal} samples that lie in the manifold of {equal} training images, of {neighbours} "
        f"nearest neighbours, {on}; in [0, 1]",
        "recall": f"share of {equal} training images that lie in the manifold of {equal} samples, of {neighbours} "
        f"nearest neighbours, {on}; in [0, 1]",
        "held_out": f"names that end so: the same of {held_out.total} held-out images in place of samples; FID is the "
        "higher the fewer images there are, KID is not, and precision and recall are of equal numbers",
    }
    if not generated.probabilities.shape[1]:
        about["score"] = "left out, since an extractor that was trained without labels knows no classes"
    if equal <= neighbours:
        about["precision"] = about["recall"] = f"left out, since manifolds take more images than {neighbours}"
    if min(equal, training.total) < 2:
        about["fid"] = about["kid"] = "left out, since a distance takes two images of each set"
    return Measured({"generation": numbers}, {f"generation.{kind}_{name}": text for name, text in about.items()})


def _kernel_distance(real: Seen, fake: Seen, seed: int) -> KernelScore | None:
    if min(real.total, fake.total) < 2:
        return None
    kernel = KernelDistance(features=real.features.shape[1], seed=seed).to(real.features.device)
    kernel.update(real.features, real.numbers, real=True)
    kernel.update(fake.features, fake.numbers, real=False)
    found: KernelScore = kernel.compute()
    return found


def _score(seen: Seen) -> float | None:
    classes = seen.probabilities.shape[1]
    if not classes:
        return None
    score = InceptionScore(classes=classes).to(seen.features.device)
    score.update(seen.probabilities)
    return float(score.compute())


def described(extractor: FeatureExtractor) -> str:
    """Which extractor it is, and that it is not the one of published numbers, where it is not."""
    return extractor.name if extractor.kind == "inception" else f"{extractor.name}, NOT Inception"


def _on(extractor: FeatureExtractor) -> str:
    return f"on features of {described(extractor)}"


def _caveat(seen: Seen, images: int) -> str:
    features = seen.features.shape[1]
    if images > features:
        return ""
    return (
        f". {images} images are no more than the {features} features, so covariances are singular and it is too large"
    )
