"""The contract of every quantizer: what `forward` returns, and what a codebook learns from.

Letters: B batch, D code dimension, `*grid` the spatial axes, N = B x positions, K codebook size, G codes per position,
R revival candidates.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from torch.export import register_dataclass

from hvq.distributed import Reduction
from hvq.errors import ConfigurationError, DataError
from hvq.histograms import count_codes
from hvq.precision import without_autocast
from hvq.pretrained import KeepsArguments, PretrainedModule
from hvq.quantizers.codebook import Codebook, CodebookStatistics
from hvq.quantizers.description import QuantizerDescription

# Buffers that follow training and say nothing of which codes latents get.
LEARNING_STATE = ("moving_counts", "moving_sums", "steps", "initialized", "started")


@dataclass(frozen=True)
class QuantizerResult:
    """What a quantizer returns, with the same fields in training and evaluation.

    Attributes:
        vectors: `[B, D, *grid]`, the vectors of the codes, through which gradients reach the latents.
        codes: int64 `[B, *grid]`, or `[B, *grid, G]` where a position has G > 1 codes; means `[B, *grid, D]` of a
            Gaussian bottleneck.
        counts: int64 `[G, K]`, how often each code was chosen, where the mask lets it count; `[G, 0]` where none was.
        losses: unweighted terms, float32 or float64 scalars; those of equation (9) are `commitment`, and `codebook`
            where the codebook learns by gradient.
        statistics: for the codebook step, one for each of the quantizer's `codebooks`; empty outside training, while
            frozen, and for quantizers that learn from gradients alone.
    """

    vectors: Tensor
    codes: Tensor
    counts: Tensor
    losses: dict[str, Tensor]
    statistics: list[CodebookStatistics]


@dataclass(frozen=True)
class FlatResult:
    """What a kind of quantizer makes of flat latents: the fields of `QuantizerResult` before they get a grid.

    Attributes:
        vectors: `[N, D]`, float32 or float64, through which gradients reach the latents.
        codes: int64 `[N]`, or `[N, G]` where G > 1.
        losses: scalars by name.
        statistics: one for each of `codebooks`, or none.
    """

    vectors: Tensor
    codes: Tensor
    losses: dict[str, Tensor]
    statistics: list[CodebookStatistics] = field(default_factory=list)


class Quantizer(PretrainedModule[QuantizerDescription], KeepsArguments):
    """A map from latents to codes and back.

    `forward` writes nothing: no buffer, no collective, and outside training no random draw. Codebooks that learn from
    the latents assigned to them do so in an explicit step beside the optimizer's, see `hvq.quantizers.CodebookStep`.
    This class takes care of grids, masks, precision and autocast; a kind defines `quantize`, `assign` and `lookup` on
    flat latents `[N, D]` in float32 or float64.

    `save_pretrained`, `push_to_hub` and `from_pretrained` are those of `hvq.pretrained.PretrainedModule`; the last of
    this class loads any kind, of a kind's own class that kind.

    Args:
        codebook_size: K, the number of values that one code takes.
        code_dimension: D, the length of the vectors.
        codes_per_position: G.

    Raises:
        ConfigurationError: where one of them is not positive.

    >>> import tempfile
    >>> from hvq.quantizers import FiniteScalarQuantizer
    >>> quantizer = FiniteScalarQuantizer(codebook_size=35, code_dimension=2, levels=(5, 7))
    >>> with tempfile.TemporaryDirectory() as scratch:
    ...     quantizer.save_pretrained(f"{scratch}/quantizer")
    ...     loaded = Quantizer.from_pretrained(f"{scratch}/quantizer")
    >>> latents = torch.rand(1, 2, 3)
    >>> torch.equal(loaded.encode(latents), quantizer.encode(latents)), loaded.arguments["levels"]
    (True, (5, 7))
    """

    kind_of_model = "quantizer"
    description_type = QuantizerDescription
    precision: Tensor

    # Whether codes are integers; where not, K is 0 and there are no counts.
    discrete: bool = True

    def __init__(self, *, codebook_size: int, code_dimension: int, codes_per_position: int = 1) -> None:
        super().__init__()
        if min(codebook_size + (not self.discrete), code_dimension, codes_per_position) < 1:
            raise ConfigurationError(
                "codebook_size, code_dimension and codes per position must be positive; "
                f"received {codebook_size}, {code_dimension} and {codes_per_position}"
            )
        self.codebook_size = codebook_size
        self.code_dimension = code_dimension
        self.codes_per_position = codes_per_position
        self.frozen = False
        # Of a quantizer that starts from latents: while True, they pass as they are. As with `frozen`, it is not saved.
        self.continuous = False
        # Its type is what the quantizer computes in: float32, or float64 where the module was cast to it.
        self.register_buffer("precision", torch.zeros(()), persistent=False)

    def extra_repr(self) -> str:
        """What `print` shows."""
        codes = f", G={self.codes_per_position}" if self.codes_per_position > 1 else ""
        return f"K={self.codebook_size}, D={self.code_dimension}{codes}"

    # --- its folder ---
    # Imported where they are used: the kinds, which are made there, are made of this class.

    def architecture(self) -> Mapping[str, Any]:
        """The fields of its description.

        Raises:
            ConfigurationError: where no configuration makes this quantizer.
        """
        from hvq.quantizers.build import describe_quantizer

        config = describe_quantizer(self)
        return {"quantizer": config, "codebook_size": self.codebook_size, "code_dimension": self.code_dimension}

    @classmethod
    def from_description(cls, description: QuantizerDescription) -> Quantizer:
        """A quantizer of the kind described, with fresh weights."""
        from hvq.quantizers.build import build_quantizer

        return build_quantizer(
            description.quantizer, codebook_size=description.codebook_size, code_dimension=description.code_dimension
        )

    def usage(self, name: str) -> str:
        """Python for the model card."""
        return f"""
import torch

from hvq.quantizers import Quantizer

quantizer = Quantizer.from_pretrained("{name}")
latents = torch.randn(1, {self.code_dimension}, 4, 4)
codes = quantizer.encode(latents)
vectors = quantizer.decode(codes)
"""

    # --- what a kind defines ---

    @abstractmethod
    def quantize(self, latents: Tensor, weights: Tensor | None) -> FlatResult:
        """Quantize latents `[N, D]`; where `weights` (bool `[N]`) is False, nothing counts."""

    @abstractmethod
    def assign(self, latents: Tensor) -> Tensor:
        """Codes int64 `[N]` or `[N, G]` of latents `[N, D]`."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `[N, D]` of codes `[N]` or `[N, G]`: the inverse of `assign`."""

    @abstractmethod
    def mean_vector(self) -> Tensor:
        """`[D]`, the mean vector, weighted by usage where it is known: a stand-in for codes that are absent."""

    @property
    def codebooks(self) -> tuple[Codebook, ...]:
        """The codebooks that learn from the latents assigned to them; none by default."""
        return ()

    def learned_vectors(self) -> list[Tensor]:
        """The vectors `[n, d]` that codes are looked up in, of each codebook those that are alive; none are fixed."""
        return [codebook.table()[codebook.alive] for codebook in self.codebooks]

    # By how much a residual is smaller than the latents were, for kinds whose vectors have a fixed scale.
    residual_gain: float = 1.0

    def no_residual_reason(self) -> str | None:
        """Why this quantizer cannot stand in a row of residual quantizers; None where it can."""
        several = self.codes_per_position > 1
        return "it gives several codes per position, and a row wants one of each quantizer" if several else None

    def initialize(self, latents: Tensor, num_steps: float, reduction: Reduction) -> None:
        """Set codebooks by k-means; does nothing where there are none.

        Args:
            latents: `[n, D]` of this process.
            num_steps: optimizer steps whose latents these are.
            reduction: joins the latents of all processes.
        """

    def pass_on(self, latents: Tensor) -> Tensor:
        """What stands for the vectors `[N, D]` of latents `[N, D]` while the quantizer is `continuous`."""
        return latents

    def advance(self) -> None:
        """Called once after each optimizer step that counts; what follows a schedule moves on here."""

    # --- what all kinds share ---

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Of the codes at a position: `()`, or `(G,)` where G > 1."""
        return (self.codes_per_position,) if self.codes_per_position > 1 else ()

    @property
    def learns(self) -> bool:
        """Whether a forward gives statistics: in training, unless frozen."""
        return self.training and not self.frozen

    @property
    def starts_from_latents(self) -> bool:
        """Whether there is a codebook that `initialize` sets."""
        return bool(self.codebooks)

    @property
    def initialized(self) -> bool:
        """Whether all codebooks have had their k-means; kept in checkpoints."""
        return all(bool(codebook.initialized) for codebook in self.codebooks)

    def forward(self, latents: Tensor, mask: Tensor | None = None) -> QuantizerResult:
        """Quantize latents; writes nothing.

        While `continuous` is set, latents pass without being quantized: codes are all 0 and mean nothing, counts are
        `[G, 0]`, and there are no losses and no statistics.

        Args:
            latents: `[B, D, *grid]`, of any floating type; under autocast too, the work is done in float32 at least.
            mask: bool `[*grid]` or `[B, *grid]`; where False, a position counts in no loss and no statistics.

        Raises:
            DataError: where the latents have another dimension than D.
        """
        with without_autocast(latents.device.type):
            weights = None if mask is None else mask.expand(latents.shape[0], *latents.shape[2:]).reshape(-1)
            flat = self._flatten(latents)
            result = self._unquantized(flat) if self.continuous else self.quantize(flat, weights)
            vectors = result.vectors.to(latents.dtype).view(latents.shape[0], *latents.shape[2:], -1)
        return QuantizerResult(
            vectors=torch.movedim(vectors, -1, 1),
            codes=self._on_grid(result.codes, latents),
            counts=self._counts(result, weights),
            losses=result.losses,
            statistics=result.statistics,
        )

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """Codes int64 `[B, *grid]` (`[B, *grid, G]` where G > 1) of latents `[B, D, *grid]`."""
        with without_autocast(latents.device.type):
            return self._on_grid(self.assign(self._flatten(latents)), latents)

    def decode(self, codes: Tensor) -> Tensor:
        """Vectors `[B, D, *grid]`, float32 or float64, of codes as `encode` gives them, of any integer type.

        Raises:
            DataError: where a code is not in 0 .. K - 1, or a position does not have G codes.
        """
        self._check_codes(codes)
        grid = codes.shape[: codes.dim() - len(self.code_shape)]
        codes = codes.long() if self.discrete else codes
        with without_autocast(codes.device.type):
            vectors = self.lookup(codes.reshape(-1, *self.code_shape))
        return torch.movedim(vectors.view(*grid, self.code_dimension), -1, 1)

    def freeze(self) -> None:
        """Stop learning, for good; gradients still reach the encoder. As with `requires_grad_`, it is not saved."""
        for module in self.modules():
            if isinstance(module, Quantizer):
                module.frozen = True
        self.requires_grad_(False)

    def _flatten(self, latents: Tensor) -> Tensor:
        if latents.dim() < 2 or latents.shape[1] != self.code_dimension:
            raise DataError(
                f"latents must be [B, {self.code_dimension}, *grid], code_dimension on axis 1; "
                f"received {list(latents.shape)}"
            )
        # No copy where latents lie channels last; and of the ways to transpose, the quickest where they do not.
        rows = latents.reshape(*latents.shape[:2], -1).transpose(1, 2).reshape(-1, self.code_dimension)
        return rows.to(self.precision.dtype)

    def _unquantized(self, latents: Tensor) -> FlatResult:
        vectors = self.pass_on(latents)
        learned = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if learned:
            # DDP waits for the gradient of every parameter.
            vectors = vectors + 0.0 * torch.stack([parameter.sum() for parameter in learned]).sum()
        return FlatResult(vectors, latents.new_zeros(len(latents), *self.code_shape, dtype=torch.int64), {})

    def _counts(self, result: FlatResult, weights: Tensor | None) -> Tensor:
        if self.continuous:
            return result.codes.new_zeros(self.codes_per_position, 0)
        if len(result.statistics) == self.codes_per_position:
            return torch.stack([statistics.counts for statistics in result.statistics])
        return count_codes(result.codes, self.codebook_size, weights)

    def _on_grid(self, codes: Tensor, latents: Tensor) -> Tensor:
        return codes.view(latents.shape[0], *latents.shape[2:], *codes.shape[1:])

    def _check_codes(self, codes: Tensor) -> None:
        wanted = self.codes_per_position
        if wanted > 1 and (codes.dim() < 2 or codes.shape[-1] != wanted):
            raise DataError(f"codes must be [B, *grid, {wanted}]; received {list(codes.shape)}")
        if not torch.compiler.is_compiling() and codes.numel():
            low, high = int(codes.min()), int(codes.max())
            if low < 0 or high >= self.codebook_size:
                raise DataError(f"codes must be in 0 .. {self.codebook_size - 1}; received {low} .. {high}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Casts of the whole model (`.half()`, `.to(torch.bfloat16)`) move a quantizer but keep its precision."""

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            too_low = tensor.is_floating_point() and moved.dtype not in (torch.float32, torch.float64)
            return tensor.to(moved.device) if too_low else moved

        super()._apply(keep_precision, recurse)
        return self


# torch.export and DistributedDataParallel look inside registered dataclasses.
register_dataclass(CodebookStatistics)
register_dataclass(QuantizerResult)
