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
from hvq.evaluation.feature_distance import in_loss
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
    return ClassifierExtractor(classifier, loss=in_loss(config.autoencoder_training, classifier)), ""


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
        seen = extractor(images[part["numbers"]].to(device))
        return {"features": seen.features.double(), "probabilities": seen.probabilities.double()}

    numbers = torch.arange(len(images))
    mine = numbers[numbers // chunk_size % reduction.size == reduction.rank]
    # A process without any still has to know how many features there are.
    parts = list(map_chunks(forward, {"numbers": mine if len(mine) else numbers[:1]}, chunk_size))
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
    if too_few_for_manifolds(min(real.total, fake.total), neighbours):
        return None
    metric = ManifoldPrecisionRecall(features=real.features.shape[1], neighbours=neighbours).to(real.features.device)
    metric.update(real.features, real=True)
    metric.update(fake.features, real=False)
    found: PrecisionRecall = metric.compute()
    return found


def too_few_for_manifolds(images: int, neighbours: int) -> str:
    """Why there is no precision and recall of sets of which the smaller has so many images; empty where there is.

    >>> too_few_for_manifolds(3, 3), too_few_for_manifolds(4, 3)
    ('left out, since manifolds take more than 3 images of each set, and there are 3 of one', '')
    """
    if images > neighbours:
        return ""
    return f"left out, since manifolds take more than {neighbours} images of each set, and there are {images} of one"


def _too_few_for_distances(images: int) -> str:
    return (
        "" if images >= 2 else f"left out, since a distance takes two images of each set, and there is {images} of one"
    )


def measure_rfid(extractor: FeatureExtractor, held_out: Seen, restored: Seen) -> Measured:
    """Fréchet distance between held-out images and their reconstructions."""
    name = f"{extractor.kind}_rfid"
    if reason := _too_few_for_distances(held_out.total):
        return Measured({"reconstruction": {name: None}}, {f"reconstruction.{name}": reason})
    text = (
        f"rFID: Fréchet distance between {held_out.total} held-out images and their reconstructions, {_on(extractor)}; "
        f"lower is better{_caveat(held_out, held_out.total)}"
    )
    return Measured({"reconstruction": {name: frechet(held_out, restored)}}, {f"reconstruction.{name}": text})


def measure_generation(
    extractor: FeatureExtractor,
    training: Seen,
    held_out: Seen,
    generated: Seen,
    *,
    neighbours: int,
    seed: int,
    how: str,
) -> Measured:
    """FID, KID, Inception score, precision and recall of samples against training images.

    Held-out images get the same numbers beside them: what perfect samples would reach, but for their number. Precision
    and recall depend on how many images there are, so all of them are of as many as the smallest of the three sets has.

    Args:
        extractor: that gave the features.
        training: real images to compare with.
        held_out: other real images.
        generated: samples.
        neighbours: k of precision and recall.
        seed: of the subsets of KID.
        how: samples were drawn, in words.
    """
    kind, equal = extractor.kind, min(training.total, held_out.total, generated.total)
    numbers: Numbers = {"extractor": described(extractor)}
    about = _about_generation(extractor, training, held_out, generated, neighbours)
    for ending, fake, what in (("", generated, "samples"), ("_held_out", held_out, "held-out images")):
        left_out = _left_out(training, fake, equal, neighbours)
        values: Numbers = dict.fromkeys(("fid", "kid", "kid_deviation", "score", "precision", "recall"))
        if "fid" not in left_out:
            kernel = _kernel_distance(training, fake, seed)
            values |= {"fid": frechet(training, fake), "kid": kernel.mean, "kid_deviation": kernel.deviation}
            about[f"kid{ending}"] = (
                f"KID: kernel distance between {fake.total} {what} and {training.total} training images, unbiased, "
                f"mean over {kernel.subsets} subset(s) of {kernel.subset_size}, with the deviation beside it, "
                f"{_on(extractor)}; 0 is alike"
            )
        if "score" not in left_out:
            values["score"] = _score(fake)
        if manifolds := precision_recall(training.spread(equal), fake.spread(equal), neighbours):
            values |= manifolds._asdict()
        numbers |= {f"{kind}_{name}{ending}": value for name, value in values.items()}
        about |= {f"{name}{ending}": reason for name, reason in left_out.items()}
    texts = {f"generation.{kind}_{name}": text for name, text in about.items()}
    return Measured({"generation": numbers}, {"generation": f"of {generated.total} samples ({how})", **texts})


def _about_generation(
    extractor: FeatureExtractor, training: Seen, held_out: Seen, generated: Seen, neighbours: int
) -> dict[str, str]:
    """What numbers of samples mean, where none is left out, but for KID."""
    equal = min(training.total, held_out.total, generated.total)
    on = _on(extractor)
    return {
        "fid": f"FID: Fréchet distance between {generated.total} samples and {training.total} training images, {on}; "
        "lower is better" + _caveat(training, min(generated.total, training.total)),
        "score": f"Inception score of {generated.total} samples as one split, {on}; from 1 to the number of classes, "
        "higher is better",
        "precision": f"share of {equal} samples that lie in the manifold of {equal} training images, of {neighbours} "
        f"nearest neighbours, {on}; in [0, 1]",
        "recall": f"share of {equal} training images that lie in the manifold of {equal} samples, of {neighbours} "
        f"nearest neighbours, {on}; in [0, 1]",
        "held_out": f"names that end so: the same of {held_out.total} held-out images in place of samples; FID is the "
        "higher the fewer images there are, KID is not, and precision and recall are of equal numbers",
    }


def _left_out(training: Seen, fake: Seen, equal: int, neighbours: int) -> dict[str, str]:
    """Numbers that a set does not get, and why; all others it gets."""
    distances = _too_few_for_distances(min(training.total, fake.total))
    manifolds = too_few_for_manifolds(equal, neighbours)
    no_classes = "left out, since an extractor that was trained without labels knows no classes"
    reasons = {
        **dict.fromkeys(("fid", "kid"), distances),
        "score": "" if fake.probabilities.shape[1] else no_classes,
        **dict.fromkeys(("precision", "recall"), manifolds),
    }
    return {name: reason for name, reason in reasons.items() if reason}


def _kernel_distance(real: Seen, fake: Seen, seed: int) -> KernelScore:
    kernel = KernelDistance(features=real.features.shape[1], seed=seed).to(real.features.device)
    kernel.update(real.features, real.numbers, real=True)
    kernel.update(fake.features, fake.numbers, real=False)
    found: KernelScore = kernel.compute()
    return found


def _score(seen: Seen) -> float:
    score = InceptionScore(classes=seen.probabilities.shape[1]).to(seen.features.device)
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
