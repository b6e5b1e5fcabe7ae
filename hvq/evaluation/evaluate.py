"""Everything that is measured of a run, into `metrics.json` and the report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hvq.config import RunConfig
from hvq.data import CodeFolder, ImageSource, Sources, build_sources, spread_rows
from hvq.data.pixels import kept_to_bytes, unit_to_kept
from hvq.data.views import noun
from hvq.distributed import Reduction, current_reduction
from hvq.evaluation.copies import copy_share
from hvq.evaluation.extractors import ClassifierExtractor, FeatureExtractor
from hvq.evaluation.measure_classification import (
    Drawn,
    measure_accuracy,
    measure_rejection,
    why_no_accuracy,
    why_no_rejection,
)
from hvq.evaluation.measure_features import Seen, build_extractor, measure_generation, measure_rfid, see
from hvq.evaluation.measure_priors import measure_bits, measure_likelihood, measure_priors
from hvq.evaluation.measure_reconstruction import encode_and_restore, measure_reconstruction
from hvq.evaluation.measured import Measured, Numbers
from hvq.evaluation.own_classifier import own_classifier
from hvq.evaluation.real_images import gather_images, most_real_images
from hvq.evaluation.sample_vectors import training_vectors
from hvq.evaluation.samples import class_labels, draw_samples, sampling_text
from hvq.storage import Hierarchy, RunFolder, load_hierarchy, require_channels

Images = dict[str, Tensor]
"""What `gather_images` gives of a split, on the CPU of every process."""


def evaluate(config: RunConfig, run: RunFolder, *, accelerator: Accelerator, sources: Sources | None = None) -> Numbers:
    """Measure what a run has: reconstruction, codes, likelihood, priors and samples.

    Args:
        config: of the run.
        run: where everything lies; `metrics.json` there is brought up to date, and a classifier whose features samples
            are compared by is left in `evaluation/`.
        accelerator: of the processes, which share the work; the numbers do not depend on how many they are.
        sources: the images; those of `config.data` by default.

    Returns:
        All numbers of `metrics.json`.

    Raises:
        CheckpointError: where a model or codes are missing, damaged, or do not belong together.
    """
    sources = sources or build_sources(config.data, config.seed)
    hierarchy = load_hierarchy(run).to(accelerator.device)
    require_channels(hierarchy.channels, sources.validation.channels)
    measured = _Evaluation(config, run, hierarchy, current_reduction()).of(sources)
    if accelerator.is_main_process:
        run.write_metrics({**measured.numbers, "about": measured.about})
    accelerator.wait_for_everyone()
    return run.metrics()


@dataclass(frozen=True)
class _Eyes:
    """An extractor, and what it sees in real images and in the reconstructions of held-out ones."""

    extractor: FeatureExtractor
    training: Seen
    held_out: Seen
    restored: Seen


@dataclass(frozen=True)
class _Evaluation:
    """A run, and the processes that measure it."""

    config: RunConfig
    run: RunFolder
    hierarchy: Hierarchy
    reduction: Reduction

    @property
    def device(self) -> torch.device:
        return next(self.hierarchy.autoencoder.parameters()).device

    def of(self, sources: Sources) -> Measured:
        """All that the run allows."""
        held_out_pass = measure_reconstruction(self.config, self.hierarchy, sources.validation, self.reduction)
        measured = held_out_pass.measured
        if self.hierarchy.priors:
            measured = measured.joined(measure_priors(self.config, self.run, self.hierarchy, self.reduction))
        training, held_out = self._gathered(sources.train), self._gathered(sources.validation)
        priors = measured.numbers.get("priors", {})
        measured = measured.joined(self._likelihood(held_out_pass.pixel_pairs, training, priors, sources.validation))
        measured = measured.joined(self._about_images(sources))
        eyes, no_eyes = self._eyes(training, held_out)
        measured = measured.joined(
            Measured(about={"reconstruction.rfid": f"left out: {no_eyes}"})
            if eyes is None
            else measure_rfid(eyes.extractor, eyes.held_out, eyes.restored)
        )
        if set(self.hierarchy.priors) == set(self.hierarchy.autoencoder.level_names):
            error = measured.numbers["reconstruction"]["mse"]
            measured = measured.joined(self._samples(training, held_out, eyes, no_eyes, error))
        return measured

    def _gathered(self, source: ImageSource) -> Images:
        """At most `most_real_images` of a split, with their labels and reconstructions."""

        def restore(images: Tensor) -> Tensor:
            return unit_to_kept(encode_and_restore(self.hierarchy, images, self.config.chunk_size)["images"])

        return gather_images(self.config, source, self.reduction, self.device, restore)

    def _likelihood(self, pixel_pairs: Tensor, training: Images, priors: Numbers, source: ImageSource) -> Measured:
        if not all(quantizer.discrete for quantizer in self.hierarchy.autoencoder.quantizers.values()):
            reason = "left out, since latents of Gaussian levels are no codes, and take bits of another kind"
            return Measured(about={"bits_per_image": reason, "likelihood": reason})
        bits = measure_bits(self.hierarchy, priors)
        if reason := self._why_no_pictures():
            return bits.joined(Measured(about={"likelihood": f"left out, since {reason} of 256 values each"}))
        if source.size != self.hierarchy.image_size:
            return bits.joined(Measured(about={"likelihood": "left out, since images are not of the size of training"}))
        numbers = bits.numbers["bits_per_image"]
        return bits.joined(measure_likelihood(self.hierarchy, pixel_pairs, training, numbers, self.reduction))

    def _why_no_pictures(self) -> str:
        """What the run is of, in place of images; empty where it is of these."""
        axes = len(self.hierarchy.image_size)
        return "" if axes == 2 else f"samples are {noun(self.hierarchy.image_size)}s, not images"

    def _eyes(self, training: Images, held_out: Images) -> tuple[_Eyes | None, str]:
        if reason := self._why_no_pictures():
            return None, f"{reason}, which is what extractors see"
        extractor, reason = build_extractor(
            self.config,
            self.run,
            training,
            num_classes=len(self.hierarchy.classes),
            device=self.device,
            reduction=self.reduction,
        )
        if extractor is None:
            return None, reason
        images = (training["images"], held_out["images"], held_out["restored"])
        return _Eyes(extractor, *(self._seen(extractor, some) for some in images)), ""

    def _about_images(self, sources: Sources) -> Measured:
        """What all features, and the classifiers of the accuracy score, are given."""
        size, channels = sources.train.size, sources.train.channels
        if self._why_no_pictures():
            return Measured()
        most = most_real_images(sources.train.size, channels)
        text = (
            f"features and classes are of images in bytes, 0 to 255, {size[0]}x{size[1]}, {channels} channel(s), "
            f"training images as they are, without augmentation; of a split of more than {most} so many, spread over "
            "all of it"
        )
        return Measured(about={"images": text})

    def _seen(self, extractor: FeatureExtractor, images: Tensor) -> Seen:
        chunk_size = self.config.chunk_size
        return see(extractor, images, chunk_size=chunk_size, device=self.device, reduction=self.reduction)

    def _samples(
        self, training: Images, held_out: Images, eyes: _Eyes | None, no_eyes: str, reconstruction_error: float
    ) -> Measured:
        """All of samples: accuracy, copies, distances to real images, rejection."""
        if reason := self._why_no_samples(training):
            groups = ("classification_accuracy_score", "generation", "rejection")
            return Measured(about=dict.fromkeys(groups, reason))
        drawn, codes = self._drawn()
        measured = self._copies(drawn, codes, training, reconstruction_error)
        if reason := self._why_no_pictures():
            reason = f"left out, since {reason}, which is what the classifier sees"
            accuracy = Measured(about={"classification_accuracy_score": reason})
        elif reason := why_no_accuracy(training, held_out):
            accuracy = Measured(about={"classification_accuracy_score": reason})
        else:
            accuracy = measure_accuracy(
                self.config,
                drawn,
                training,
                held_out,
                num_classes=len(self.hierarchy.classes),
                reduction=self.reduction,
                device=self.device,
            )
        measured = accuracy.joined(measured)
        if eyes is None:
            return measured.joined(Measured(about=dict.fromkeys(("generation", "rejection"), f"left out: {no_eyes}")))
        seen = self._seen(eyes.extractor, drawn.images)
        generation = measure_generation(
            eyes.extractor,
            eyes.training,
            eyes.held_out,
            seen,
            neighbours=self.config.evaluation.neighbours,
            seed=self.config.seed,
            how=drawn.how,
        )
        return measured.joined(generation).joined(self._rejection(drawn, training, eyes, seen))

    def _why_no_samples(self, training: Images) -> str:
        """Why samples cannot be compared with real images; empty where they can."""
        there, wanted = training["images"].shape[2:], self.hierarchy.image_size
        if tuple(there) == wanted:
            return ""
        return (
            f"left out, since samples are {'x'.join(map(str, wanted))}, the size of training, and data gives images of "
            f"{'x'.join(map(str, there))}"
        )

    def _drawn(self) -> tuple[Drawn, dict[str, Tensor]]:
        """Samples of all classes, and their codes."""
        labels = class_labels(len(self.hierarchy.classes), self.config.evaluation.generated_per_class)
        vectors, given = self._vectors(torch.tensor(labels))
        generated = draw_samples(
            self.config,
            self.hierarchy,
            labels,
            reduction=self.reduction,
            vectors=vectors,
            what="samples to be measured",
        )
        how = sampling_text(self.config, self.hierarchy) + given
        return Drawn(generated.images, torch.tensor(labels), how), generated.codes

    def _vectors(self, labels: Tensor) -> tuple[Tensor | None, str]:
        """What samples of priors that are conditioned on vectors are drawn given, and the same in words."""
        if not self.hierarchy.vector_size:
            return None, ""
        codes = CodeFolder(self.run.codes, "train")
        if codes.vector_size != self.hierarchy.vector_size:
            return None, "; vectors hidden, since the codes have none that the priors know"
        return training_vectors(codes, labels, self.config.seed), "; given vectors of training images of the class"

    def _copies(
        self, drawn: Drawn, codes: dict[str, Tensor], training: Images, reconstruction_error: float
    ) -> Measured:
        copies = copy_share(
            kept_to_bytes(drawn.images),
            codes,
            kept_to_bytes(training["images"]),
            _training_codes(self.run, self.hierarchy.channels),
            threshold=reconstruction_error,
        )
        about = (
            f"share of {len(drawn.images)} generated images ({drawn.how}) whose codes equal those of one of "
            f"{len(training['images'])} training images, or whose pixels are as near to one as reconstructions are on "
            "average (mean squared error on [0, 1] up to "
            f"{reconstruction_error:.2g})"
        )
        group = "classification_accuracy_score"
        return Measured(
            {group: {"copies": copies.share, "copies_by_codes": copies.by_codes}}, {f"{group}.copies": about}
        )

    def _rejection(self, drawn: Drawn, training: Images, eyes: _Eyes, seen: Seen) -> Measured:
        if reason := why_no_rejection(training):
            return Measured(about={"rejection": reason})
        return measure_rejection(
            self.config,
            drawn,
            training,
            judge=self._judge(training, eyes.extractor),
            extractor=eyes.extractor,
            seen_training=eyes.training,
            seen_generated=seen,
            num_classes=len(self.hierarchy.classes),
            reduction=self.reduction,
            device=self.device,
        )

    def _judge(self, training: Images, extractor: FeatureExtractor) -> nn.Module:
        """The classifier of real images that is sure of samples or not: the extractor itself, where it is one."""
        if isinstance(extractor, ClassifierExtractor):
            return extractor.classifier.network
        return own_classifier(
            self.run.classifier,
            training["images"],
            training["labels"],
            num_classes=len(self.hierarchy.classes),
            steps=self.config.evaluation.classifier_steps,
            seed=self.config.seed,
            device=self.device,
            reduction=self.reduction,
        ).network


def _training_codes(run: RunFolder, channels: int) -> dict[str, Tensor]:
    """Codes of the same training images that `gather_images` gives, in every augmented epoch."""
    folder = CodeFolder(run.codes, "train")
    images = spread_rows(folder.num_images, most_real_images(folder.image_size, channels))
    epochs = np.arange(folder.description.augmented_epochs)
    return folder.fetch((epochs[:, None] * folder.num_images + images).flatten()).codes
