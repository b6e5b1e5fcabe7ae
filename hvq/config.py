"""A whole run as frozen, validated data: what is read from YAML, and written as JSON beside the weights.

These models hold plain values and know nothing of tensors; the `build` module of each room turns its part into
objects. Every default equals that of the constructor it describes (a test holds that).
"""

from __future__ import annotations

from functools import reduce
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from hvq.config_base import FrozenModel, Name, Share, ShareBelowOne
from hvq.config_data import DataConfig, DigitsConfig
from hvq.config_losses import AdversarialConfig, ReconstructionLossConfig, single_loss, squared_error_alone
from hvq.config_priors import PriorConfig, TransformerPriorConfig
from hvq.config_quantizers import QuantizerConfig, VectorQuantizerConfig
from hvq.level_names import default_level_names, in_level_order

Precision = Literal["float32", "bfloat16"]
Tracker = Literal["tensorboard", "wandb"]
LevelName = Name


# --- autoencoder ----------------------------------------------------------------------------------------------------


class LevelConfig(FrozenModel):
    """One level of the hierarchy."""

    ratio: PositiveInt = Field(
        description="size of the next finer grid, or of the image for the finest level, over this one's"
    )
    width: PositiveInt = Field(128, description="channels of this level's features")
    residual_blocks: NonNegativeInt = Field(2, description="residual blocks in its encoder and in its merge")
    residual_width: PositiveInt = Field(32, description="channels inside a residual block")
    codebook_size: PositiveInt = Field(
        512, description="K, the number of values of a code; a gaussian quantizer does without"
    )
    code_dimension: PositiveInt = Field(64, description="D, the length of the vector that codes stand for")
    quantizer: QuantizerConfig = Field(default_factory=VectorQuantizerConfig)


class DecoderConfig(FrozenModel):
    """The image decoder, which sees all levels."""

    width: PositiveInt = Field(128, description="channels of its features")
    residual_blocks: NonNegativeInt = Field(2, description="residual blocks")
    residual_width: PositiveInt = Field(32, description="channels inside a residual block")
    sees: Literal["context", "vectors", "vectors_throughout"] = Field(
        "context",
        description="what it is told of coarser levels: the context that they give the finest, or their vectors, each "
        "enlarged by transposed convolutions of their own; throughout: merges, too, are told those of levels coarser "
        "than theirs",
    )
    learn_scale: bool = Field(
        False, description="learn the scale of a loss of kind discretized_logistic, one for each channel of the image"
    )


class AutoencoderConfig(FrozenModel):
    """Levels by name, coarse to fine, and the image decoder."""

    channels: PositiveInt = Field(3, description="C, channels of the image")
    spatial_dims: Literal[1, 2, 3] = Field(
        2, description="axes of images and grids: 2, or 1 for signals such as sounds, 3 for volumes"
    )
    levels: dict[LevelName, LevelConfig] = Field(description="levels by name, coarse to fine", min_length=1)
    decoder: DecoderConfig = Field(default_factory=DecoderConfig, description="the image decoder")
    blocks: Literal["residual", "rezero"] = Field(
        "residual",
        description="of encoders and decoders: those of the papers, or ones whose branch is rectified and starts at 0",
    )
    level_dropout: ShareBelowOne = Field(
        0.0, description="chance that a sample is decoded from its coarser levels alone, while training"
    )
    recompute: bool = Field(
        False, description="compute encoders and decoders again in the backward pass, to spare memory"
    )

    @field_validator("levels", mode="after")
    @classmethod
    def _default_names_are_ordered(cls, levels: dict[str, LevelConfig]) -> dict[str, LevelConfig]:
        """Coarse to fine where the names are a default set, which say their order; else as they were written."""
        names = default_level_names(len(levels))
        return in_level_order(levels, names, "levels") if set(names) == set(levels) else levels


# --- training -------------------------------------------------------------------------------------------------------


# Of the steps of an autoencoder, how many are continuous by default.
_CONTINUOUS_SHARE = 0.2
_LONGEST_CONTINUOUS_START = 2_000


class OptimizationConfig(FrozenModel):
    """How long and how fast; learning rate and order of samples are functions of the optimizer step alone."""

    steps: PositiveInt = Field(10_000, description="optimizer steps")
    batch_size: PositiveInt = Field(128, description="samples per optimizer step, over all processes and micro-batches")
    micro_batches: PositiveInt = Field(1, description="parts in which each process takes its share of a batch")
    learning_rate: PositiveFloat = Field(3e-4, description="after warm-up")
    final_learning_rate: Share = Field(0.05, description="share of the learning rate that the cosine ends at")
    warmup_steps: NonNegativeInt = Field(100, description="steps of linear warm-up")
    weight_decay: NonNegativeFloat = Field(0.0, description="AdamW's, on weights of two and more dimensions")
    betas: tuple[ShareBelowOne, ShareBelowOne] = Field((0.9, 0.99), description="AdamW's")
    gradient_clip: PositiveFloat = Field(1.0, description="largest norm of the gradient")
    average_decay: ShareBelowOne = Field(
        0.0,
        description="decay of the moving average of the weights that is kept as the result; 0 keeps the last weights",
    )
    compile: bool = Field(
        False,
        description="compile the model for training (torch.compile), which takes minutes once and speeds steps up",
    )
    tf32: bool = Field(
        True, description="let GPUs round float32 products in training to TF32; the search for codes stays exact"
    )
    log_every: PositiveInt = Field(50, description="steps between lines of numbers")
    evaluate_every: PositiveInt = Field(1_000, description="steps between looks at held-out data")
    checkpoint_every: PositiveInt = Field(1_000, description="steps between training checkpoints")
    keep_checkpoints: PositiveInt = Field(
        2, description="training checkpoints that are kept, the last ones, and the one of the best look beside them"
    )
    skipped_steps: PositiveInt = Field(
        50,
        description="steps in a row whose loss or gradient is not finite, each of them skipped, at which training ends",
    )


class AutoencoderTrainingConfig(OptimizationConfig):
    """Training of the autoencoder, equation (9)."""

    frozen_levels: tuple[LevelName, ...] = Field(
        (),
        description="levels that stay as they are, with weights from --init-from; their codes stay too where all finer "
        "levels are frozen",
    )
    reconstruction: Annotated[dict[Name, ReconstructionLossConfig], BeforeValidator(single_loss)] = Field(
        default_factory=squared_error_alone,
        description="terms of the reconstruction loss by any name, which are weighted and summed; a kind alone, such "
        "as l1, stands for that loss of pixels",
        min_length=1,
        json_schema_extra={"each": "term"},
    )
    continuous_steps: NonNegativeInt | None = Field(
        None,
        description="optimizer steps before codebooks are set, by k-means: until then latents pass unquantized; null "
        f"for a share of {_CONTINUOUS_SHARE:g} of all steps, {_LONGEST_CONTINUOUS_START:,} at most",
    )
    commitment_weight: NonNegativeFloat = Field(0.25, description="beta, which multiplies the commitment loss alone")
    codebook_weight: NonNegativeFloat = Field(
        1.0, description="of the codebook loss, where codebooks learn by gradient"
    )
    entropy_weight: NonNegativeFloat = Field(0.1, description="of the entropy terms of lookup-free quantizers")
    kl_weight: NonNegativeFloat = Field(
        5e-4,
        description="of the divergence from the prior, in nats per position: the uniform one of gumbel quantizers, the "
        "standard normal one of gaussian ones, where, for one level, 2 s^2 / (channels x stride^2) makes mse an ELBO "
        "of variance s^2",
    )

    @property
    def continuous_start(self) -> int:
        """Optimizer steps before codebooks are set."""
        by_default = min(int(_CONTINUOUS_SHARE * self.steps), _LONGEST_CONTINUOUS_START)
        return by_default if self.continuous_steps is None else self.continuous_steps

    @property
    def adversary(self) -> tuple[str, AdversarialConfig] | None:
        """Name and configuration of the adversarial term of the reconstruction loss; None where there is none."""
        terms = self.reconstruction.items()
        return next(((name, term) for name, term in terms if isinstance(term, AdversarialConfig)), None)

    @model_validator(mode="after")
    def _codes_are_trained(self) -> AutoencoderTrainingConfig:
        if self.continuous_start >= self.steps:
            raise ValueError(
                f"continuous_steps must be fewer than all {self.steps} steps, after which there are codes; received "
                f"{self.continuous_steps}"
            )
        return self

    @model_validator(mode="after")
    def _adversary_has_others(self) -> AutoencoderTrainingConfig:
        adversaries = [name for name, term in self.reconstruction.items() if term.kind == "adversarial"]
        if len(adversaries) > 1:
            raise ValueError(f"reconstruction has room for one adversarial term; received {', '.join(adversaries)}")
        if len(adversaries) == len(self.reconstruction):
            raise ValueError(
                f"reconstruction has nothing beside the adversarial term {adversaries[0]}, which is weighed by the "
                "others; add one such as pixels: {kind: mse}"
            )
        if adversaries and self.compile:
            raise ValueError(
                f"compile and the adversarial term {adversaries[0]} of reconstruction do not go together, since its "
                "weight takes gradients in the middle of a step; set compile to false, or leave the term out"
            )
        return self


class PriorTrainingConfig(OptimizationConfig):
    """Training of one prior."""

    label_dropout: ShareBelowOne = Field(
        0.1,
        description="share of training samples whose class is hidden; of those that have a vector too, see "
        "vector_dropout",
    )
    vector_dropout: ShareBelowOne = Field(
        0.1,
        description="the same of the vector, where images have vectors; class and vector are hidden together for the "
        "smaller share, and one of them alone for the difference; of other samples that have both, half of the smaller "
        "share have the class alone hidden, and as many the vector, so that each can be asked for without the other",
    )
    average_decay: ShareBelowOne = Field(
        0.99,
        description="decay of the moving average of the weights that is kept as the result; 0 keeps the last weights",
    )
    patience: NonNegativeInt = Field(
        0, description="looks at held-out codes without improvement after which training stops early; 0 for never"
    )


class CodeSamplingConfig(FrozenModel):
    """How codes of one level are drawn from its prior."""

    temperature: NonNegativeFloat = Field(1.0, description="divides the logits; 0 takes the most probable code")
    top_k: PositiveInt | None = Field(None, description="draw among the k most probable codes only")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="draw among the most probable codes that together hold this share"
    )
    guidance: NonNegativeFloat = Field(
        1.0,
        description="classifier-free guidance, from 0, which ignores class and vector, over 1, which means none, to "
        "larger numbers, which are truer to them and less diverse; takes classes or vectors, and twice the work unless "
        "it is 1",
    )


class PriorStageConfig(FrozenModel):
    """The prior of one level: the model, its training, and how it is sampled."""

    model: PriorConfig = Field(default_factory=TransformerPriorConfig)
    training: PriorTrainingConfig = Field(default_factory=PriorTrainingConfig, description="its training")
    sampling: CodeSamplingConfig = Field(default_factory=CodeSamplingConfig, description="how it is sampled")


# --- the other stages -----------------------------------------------------------------------------------------------


class ExtractionConfig(FrozenModel):
    """Writing the codes of all images."""

    augmented_epochs: PositiveInt = Field(
        1, description="times each training image is encoded; from the second on with augmentation"
    )
    images_per_shard: PositiveInt = Field(
        4_096, description="images in one file of codes, which one process writes, and an interruption loses at most"
    )


class SamplingConfig(FrozenModel):
    """Samples for the report."""

    samples_per_class: PositiveInt = Field(10, description="images drawn of each class (in all, without classes)")
    precision: Precision = Field(
        "float32", description="of the priors' weights wherever samples are drawn; bfloat16 reads half as much of them"
    )


class EvaluationConfig(FrozenModel):
    """What is measured at the end of a run."""

    generated_per_class: PositiveInt = Field(200, description="images per class for the classification accuracy score")
    classifier_steps: Annotated[int, Field(ge=10)] = Field(400, description="training steps of its classifier")
    classifier_seeds: PositiveInt = Field(3, description="classifiers trained, whose mean is reported")
    extractor: Literal["classifier", "inception"] = Field(
        "classifier",
        description="whose features FID, KID, precision and recall compare: a small classifier's, trained for as many "
        "steps on the run's real images (or, without classes, to tell their rotations), or those of the Inception of "
        "published numbers, where torch-fidelity and its weights are on this machine",
    )
    neighbours: PositiveInt = Field(3, description="k of the nearest-neighbour manifolds of precision and recall")


class RunConfig(FrozenModel):
    """A whole run, from images to samples."""

    seed: NonNegativeInt = Field(0, description="of everything that is random")
    chunk_size: PositiveInt = Field(
        64,
        description="images in each forward of extraction, evaluation and sampling; results do not depend on it "
        "but for rounding, and not at all on batch size or number of processes",
    )
    mixed_precision: Literal["no", "bf16", "fp16"] | None = Field(
        None, description="autocast while training; None leaves it to accelerate's own configuration"
    )
    process_timeout: PositiveInt = Field(
        1_800,
        description="seconds that a process waits for the others before the run ends; longer than what one of them "
        "does alone at a time: a look through new data, a file of codes, a chunk of samples, a classifier of the "
        "evaluation",
    )
    trackers: tuple[Tracker, ...] | None = Field(
        None,
        description="where numbers and pictures of training go, beside the terminal and metrics.jsonl; [] for nowhere, "
        "null for TensorBoard where it is installed",
    )
    data: DataConfig = Field(default_factory=DigitsConfig)
    autoencoder: AutoencoderConfig = Field(description="the hierarchy of levels")
    autoencoder_training: AutoencoderTrainingConfig = Field(
        default_factory=AutoencoderTrainingConfig, description="stage 1"
    )
    extraction: ExtractionConfig = Field(default_factory=ExtractionConfig, description="codes between the stages")
    priors: dict[str, PriorStageConfig] = Field(default_factory=dict, description="stage 2, by level name")
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="samples for the report")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="final measurements")

    @model_validator(mode="after")
    def _parts_agree(self) -> RunConfig:
        if self.data.channels != self.autoencoder.channels:
            raise ValueError(
                f"data.channels is {self.data.channels} and autoencoder.channels is {self.autoencoder.channels}; "
                "set both to the same number"
            )
        stride = 1
        for level in self.autoencoder.levels.values():
            stride *= level.ratio
        if min(self.data.size) < stride:
            raise ValueError(
                f"data.size {'x'.join(map(str, self.data.size))} is smaller than the coarsest stride {stride} "
                "(the product of all levels' ratios); take larger images, smaller ratios or fewer levels"
            )
        unknown = [name for name in self.priors if name not in self.autoencoder.levels]
        if unknown:
            raise ValueError(
                f"priors names {', '.join(unknown)}, which is not a level; "
                f"levels are {', '.join(self.autoencoder.levels)}"
            )
        without = [name for name in self.priors if self.autoencoder.levels[name].quantizer.kind == "gaussian"]
        if without:
            raise ValueError(
                f"priors names {', '.join(without)}, whose quantizer is gaussian and gives no codes that a prior could "
                "learn; leave the prior out, or take another kind of quantizer"
            )
        return self

    @model_validator(mode="after")
    def _all_have_the_same_axes(self) -> RunConfig:
        axes = self.autoencoder.spatial_dims
        if len(self.data.size) != axes:
            raise ValueError(
                f"autoencoder.spatial_dims is {axes}, and data of kind {self.data.kind} with data.size "
                f"{'x'.join(map(str, self.data.size))} has {len(self.data.size)}; set it to the number of axes"
            )
        for name, prior in self.priors.items():
            if prior.model.kind != "transformer" and axes == 3:
                raise ValueError(
                    f"priors.{name}.model.kind is {prior.model.kind}, which takes grids of one axis or two, and "
                    "autoencoder.spatial_dims is 3; take kind transformer"
                )
        if axes != 2:
            self._refuse_what_is_of_pictures(axes)
        return self

    def _refuse_what_is_of_pictures(self, axes: int) -> None:
        for name, term in self.autoencoder_training.reconstruction.items():
            if term.kind in ("adversarial", "perceptual"):
                raise ValueError(
                    f"autoencoder_training.reconstruction.{name} is of kind {term.kind}, whose network sees images of "
                    f"two axes, and autoencoder.spatial_dims is {axes}; take other terms, such as mse or l1"
                )
            if term.kind == "discretized_logistic":
                raise ValueError(
                    f"autoencoder_training.reconstruction.{name} is of kind discretized_logistic, for the 256 values "
                    f"of pixels, and with autoencoder.spatial_dims {axes} values are finer; take mse or l1"
                )

    @model_validator(mode="after")
    def _losses_suit_the_model(self) -> RunConfig:
        kinds = {term.kind for term in self.autoencoder_training.reconstruction.values()}
        if self.autoencoder.decoder.learn_scale and "discretized_logistic" not in kinds:
            raise ValueError(
                "autoencoder.decoder.learn_scale is true, and nothing teaches the scale; give "
                "autoencoder_training.reconstruction a term of kind discretized_logistic, or set it to false"
            )
        if "per_level" in kinds and len(self.autoencoder.levels) == 1:
            raise ValueError(
                "autoencoder_training.reconstruction has a term of kind per_level, which takes two levels or more; "
                f"there is one, {', '.join(self.autoencoder.levels)}"
            )
        adversary = self.autoencoder_training.adversary
        if adversary is not None and min(self.data.size) < 3 * 2 ** adversary[1].layers:
            name, term = adversary
            raise ValueError(
                f"autoencoder_training.reconstruction.{name}.layers is {term.layers}, which takes images of at least "
                f"{3 * 2**term.layers} pixels per side; data.size is {'x'.join(map(str, self.data.size))}: take "
                "fewer layers, or larger images"
            )
        return self

    def prior(self, level: str) -> PriorStageConfig:
        """The prior stage of a level, defaults where the run says nothing of it."""
        return self.priors.get(level, PriorStageConfig())

    def parts(self, *paths: str) -> dict[str, Any]:
        """Some parts of the run as plain values, by dotted path, as a checkpoint keeps them.

        >>> RunConfig(autoencoder={"channels": 1, "levels": {"top": {"ratio": 4}}}).parts("seed", "data.kind")
        {'seed': 0, 'data.kind': 'digits'}
        """
        plain = self.model_dump(mode="json")
        return {path: reduce(lambda value, name: value[name], path.split("."), plain) for path in paths}
