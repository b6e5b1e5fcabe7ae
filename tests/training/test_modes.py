"""Ways to compute a step faster or in less memory: what codebooks learn, and the step, are those of the plain way."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from hvq.autoencoders import Autoencoder, AutoencoderLoss, build_autoencoder
from hvq.config import AutoencoderConfig, OptimizationConfig, RunConfig
from hvq.errors import ConfigurationError
from hvq.quantizers.codebook import Codebook, CodebookStatistics, join_statistics
from hvq.storage import RunFolder
from hvq.training import fit_autoencoder, fit_prior
from hvq.training.optimization import Losses, Optimization
from tests.processes import run_in_processes
from tests.runs import TrainedRun, changed, tensors_below
from tests.versions import needs_newer_torch

LEVEL = {"width": 8, "residual_blocks": 1, "residual_width": 4, "quantizer": {"revival_threshold": 0.0}}
LEVELS = {
    "top": {**LEVEL, "ratio": 2, "codebook_size": 7, "code_dimension": 3},
    "bottom": {**LEVEL, "ratio": 2, "codebook_size": 11, "code_dimension": 5},
}


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


class _Graphs:
    """Stands for the compiler of `torch.compile`, which takes minutes: counts graphs, and runs them as they are."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Any:
        self.number += 1
        return graph.forward


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> _Graphs:
    counting = _Graphs()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    return counting


class _Step:
    """One step of an autoencoder, and what it saw.

    Attributes:
        latents: of each quantizer and micro-batch, as it was given them, where hooks can see it.
        statistics: of each codebook, summed over micro-batches.
        gradients: clipped, by name, as the optimizer has averaged them.
    """

    def __init__(
        self,
        *,
        recompute: bool = False,
        micro_batches: int = 1,
        channels_last: bool = True,
        precision: str = "no",
        look: bool = True,
        **training: Any,
    ) -> None:
        torch.manual_seed(0)
        config = AutoencoderConfig.model_validate({"channels": 1, "levels": LEVELS, "recompute": recompute})
        self.model = build_autoencoder(config).train()
        if channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.latents: list[tuple[str, Tensor]] = []
        if look:
            self._watch(self.model)
        self.optimization = Optimization(
            self.model,
            OptimizationConfig(steps=9, warmup_steps=0, **training),
            Accelerator(mixed_precision=precision),
            seed=5,
            quantizers=self.model.quantizers,
        )
        self.statistics: list[CodebookStatistics] = []
        images = torch.rand(12, 1, 8, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1
        with pytest.MonkeyPatch.context() as patch:
            apply = Codebook.apply_statistics

            def recorded(codebook: Codebook, statistics: CodebookStatistics) -> Tensor:
                self.statistics.append(statistics)
                return apply(codebook, statistics)

            patch.setattr(Codebook, "apply_statistics", recorded)
            self.report = self.optimization.step(images.chunk(micro_batches), self._losses)
        self.gradients = {
            name: self.optimization.optimizer.state[parameter]["exp_avg"]
            for name, parameter in self.model.named_parameters()
        }

    def _losses(self, images: Tensor) -> Losses:
        result = self.optimization.wrapped(images)
        self.optimization.codebooks.add(result.levels)
        return AutoencoderLoss()(result, images)

    def _watch(self, model: Autoencoder) -> None:
        for name, quantizer in model.quantizers.items():

            def keep(_: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
                self.latents.append((name, inputs[0].detach().clone()))

            quantizer.register_forward_pre_hook(keep)

    def in_float32(self) -> list[CodebookStatistics]:
        """What the codebooks are told of the same latents by quantizers that know of no mode."""
        torch.manual_seed(0)
        fresh = build_autoencoder(AutoencoderConfig.model_validate({"channels": 1, "levels": LEVELS})).train()
        return [
            join_statistics(
                [
                    fresh.quantizers[name](latents.float()).statistics[0]
                    for level, latents in self.latents
                    if level == name
                ]
            )
            for name in LEVELS
        ]


MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "recompute": {"recompute": True},
    "micro-batches": {"micro_batches": 4},
    "recompute, micro-batches": {"recompute": True, "micro_batches": 3},
    "channels first": {"channels_last": False},
    "without TF32": {"tf32": False},
    "bf16": {"precision": "bf16"},
    "bf16, recompute": {"precision": "bf16", "recompute": True},
    "compile": {"compile": True, "look": False},
    "compile, recompute": {"compile": True, "recompute": True, "look": False},
    "compile, micro-batches": {"compile": True, "micro_batches": 2, "look": False},
}


@pytest.mark.parametrize("mode", MODES)
def test_the_codebooks_and_the_step_are_those_of_the_plain_way(mode: str, graphs: _Graphs) -> None:
    # What other tests have compiled counts towards the number after which nothing more is compiled.
    torch.compiler.reset()
    plain = _Step()
    assert graphs.number == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    other = _Step(**MODES[mode])
    assert (graphs.number > 0) == ("compile" in mode)
    exact = "bf16" not in mode
    assert [int(part.counts.sum()) for part in other.statistics] == [12 * 2 * 3, 12 * 4 * 6]
    for mine, reference in zip(other.statistics, plain.statistics, strict=True):
        assert mine.counts.dtype == torch.int64
        assert mine.sums.dtype == torch.float32
        if exact:
            assert torch.equal(mine.counts, reference.counts)
            torch.testing.assert_close(mine.sums, reference.sums, rtol=1e-5, atol=1e-5)
    if other.latents:
        # Recomputed, they would be seen twice.
        assert len(other.latents) == 2 * MODES[mode].get("micro_batches", 1)
        for mine, expected in zip(other.statistics, other.in_float32(), strict=True):
            assert torch.equal(mine.counts, expected.counts)
            assert torch.equal(mine.sums, expected.sums)
    assert other.model.state_dict().keys() == plain.model.state_dict().keys()
    scale = max(float(gradient.abs().max()) for gradient in plain.gradients.values())
    for name, gradient in plain.gradients.items():
        assert float((gradient - other.gradients[name]).abs().max()) < (1e-5 if exact else 0.2) * scale, name
    assert other.report.terms == pytest.approx(plain.report.terms, rel=1e-5 if exact else 0.05)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_under_any_autocast_a_quantizer_is_what_it_is_without(precision: torch.dtype) -> None:
    torch.manual_seed(0)
    model = build_autoencoder(AutoencoderConfig.model_validate({"channels": 1, "levels": LEVELS})).train()
    latents = torch.randn(5, 3, 7, 11)
    expected = model.quantizers["top"](latents)
    with torch.autocast("cpu", dtype=precision):
        result = model.quantizers["top"](latents)
    assert torch.equal(result.codes, expected.codes)
    assert torch.equal(result.statistics[0].sums, expected.statistics[0].sums)
    assert torch.equal(result.losses["commitment"], expected.losses["commitment"])


def test_recomputing_keeps_less() -> None:
    kept: dict[bool, int] = {}
    for recompute in (False, True):
        config = AutoencoderConfig.model_validate({"channels": 1, "levels": LEVELS, "recompute": recompute})
        model, sizes = build_autoencoder(config).train(), []

        def count(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(torch.zeros(2, 1, 16, 16)).reconstruction.sum()
        kept[recompute] = sum(sizes)
    assert kept[True] < 0.5 * kept[False]


# --- TF32 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_for_training_alone_and_not_for_the_search(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[bool]] = {"forward": set(), "search": set()}
    switch = torch.backends.cuda.matmul
    before = switch.allow_tf32

    def searched(latents: Tensor, *_: Any) -> Tensor:
        seen["search"].add(switch.allow_tf32)
        return torch.zeros(len(latents), dtype=torch.int64)

    monkeypatch.setenv("HVQ_SEARCH_BACKEND", "torch")
    monkeypatch.setattr("hvq.quantizers.search.nearest.nearest_plain", searched)
    forward = Autoencoder.forward

    def watched(model: Autoencoder, *inputs: Any) -> Any:
        seen["forward"].add(switch.allow_tf32)
        return forward(model, *inputs)

    monkeypatch.setattr(Autoencoder, "forward", watched)
    _Step(tf32=allowed)
    assert seen == {"forward": {allowed}, "search": {False}}
    assert switch.allow_tf32 == before


# --- what would be ignored --------------------------------------------------------------------------------------------


def test_fp16_is_refused_on_a_cpu() -> None:
    with pytest.raises(ConfigurationError, match=r"fp16 takes a GPU, .* set mixed_precision to bf16 or no"):
        _Step(precision="fp16")


def test_a_launcher_that_compiles_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    with pytest.raises(ConfigurationError, match=r"dynamo_backend\); leave it out, and set compile: true in"):
        _Step()


# --- compiled, in processes -------------------------------------------------------------------------------------------


def _fit_twice(plain: dict[str, Any], folder: str, sharded: bool) -> int:
    """As it is, and compiled; the number of graphs."""
    counting = _Graphs()
    torch.compile = partial(torch.compile, backend=counting)  # type: ignore[assignment]
    config = RunConfig.model_validate(plain)
    if sharded:
        os.environ.update({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"})
        fit_prior(config, RunFolder(Path(folder) / "plain"), "bottom")
        compiling = changed(config, priors__bottom__training__compile=True)
        fit_prior(compiling, RunFolder(Path(folder) / "compiled"), "bottom")
    else:
        fit_autoencoder(config, RunFolder(Path(folder) / "plain"))
        compiling = changed(config, autoencoder_training__compile=True)
        fit_autoencoder(compiling, RunFolder(Path(folder) / "compiled"))
    return counting.number


@needs_newer_torch
@pytest.mark.processes
@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_compile(trained_run: TrainedRun, tmp_path: Path, sharded: bool) -> None:
    """The autoencoder with DDP; a prior with FSDP, whose blocks are recomputed."""
    short = {"steps": 3, "batch_size": 12, "micro_batches": 2, "warmup_steps": 0, "log_every": 1}
    model = {"kind": "transformer", "width": 8, "layers": 2, "heads": 2, "dropout": 0.0, "recompute": True}
    config = changed(trained_run.config, autoencoder_training=short, priors__bottom={"model": model, "training": short})
    runs = [trained_run.copied(tmp_path / name).run for name in ("plain", "compiled")]
    numbers = run_in_processes(_fit_twice, 2, config.model_dump(mode="json"), str(tmp_path), sharded)
    assert min(numbers) > 0
    names = [tensors_below(run.prior("bottom") if sharded else run.autoencoder).keys() for run in runs]
    assert names[0] == names[1]
    losses = [[row["loss"] for row in run.lines()[-4:] if "loss" in row] for run in runs]
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
