"""Search and training step of the vector quantizer beside other implementations, on the same inputs in one process.

    python benchmarks/quantizer.py --json quantizer.json

`search` is the nearest code of every latent; `step` is forward and backward of the quantizer in training and the update
of its codebook by moving averages. Repetitions of all implementations take turns; the median is printed, and its ratio
to the arithmetic floor, 2 N K D over the best float32 rate that a product or a convolution reaches in the same run.
Peak memory is what a process of its own needs beyond its inputs. A call with the same file goes on where the last one
stopped.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import about, best_rate, interleaved, load_rows, peak_beyond, peak_in_a_process, save_rows
from torch import Tensor
from torch.nn import functional

from hvq.files import read_tensors
from hvq.quantizers import CodebookStep, VectorQuantizer
from hvq.quantizers.search import available_backends, nearest_code

Size = tuple[int, int, int]
CPU_SIZES: list[Size] = [
    (65_536, 512, 64),
    (65_536, 8_192, 64),
    (16_384, 8_192, 256),
    (65_536, 16_384, 8),
    (65_536, 65_536, 16),
]
QUICK_SIZES: list[Size] = [(65_536, 512, 64), (8_192, 8_192, 64), (4_096, 16_384, 8)]
CUDA_SIZES: list[Size] = [(1_048_576, k, d) for k in (512, 8_192, 65_536) for d in (8, 64, 256)]
BETA = 0.25
DECAY = 0.99
# Matrices of N x K that an implementation holds at a time.
MATRICES = {"plain": {"search": 0, "step": 3}, "vector-quantize-pytorch": {"step": 4}}


@dataclass(frozen=True)
class Row:
    """One measurement; `ms` is a median, `times_floor` its ratio to the arithmetic floor."""

    what: str
    n: int
    k: int
    d: int
    implementation: str
    ms: float
    peak_mib: float | None
    times_floor: float


# --- inputs ----------------------------------------------------------------------------------------------------------


def make_inputs(size: Size, device: str, file: Path | None) -> tuple[Tensor, Tensor]:
    """Latents `[N, D]` around the vectors of a codebook `[K, D]`, or both from a file."""
    if file is not None:
        tensors, _ = read_tensors(file, "latents")
        return tensors["latents"].float().to(device), tensors["codebook"].float().to(device)
    number, codes, dimension = size
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(codes, dimension, generator=generator)
    owners = torch.randint(codes, (number,), generator=generator)
    latents = codebook[owners] + 0.5 * torch.randn(number, dimension, generator=generator)
    return latents.to(device), codebook.to(device)


def on_grid(latents: Tensor) -> Tensor:
    """`[B, D, h, w]`, channels last, as convolutions leave them; 64x64 codes a picture where N allows."""
    positions = 4_096 if len(latents) % 4_096 == 0 else len(latents)
    side = 64 if positions == 4_096 else 1
    return latents.view(-1, side, positions // side, latents.shape[1]).movedim(-1, 1)


# --- implementations -------------------------------------------------------------------------------------------------


@contextmanager
def search_backend(name: str) -> Any:
    """What `nearest_code` uses inside a quantizer."""
    before = os.environ.get("HVQ_SEARCH_BACKEND")
    os.environ["HVQ_SEARCH_BACKEND"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["HVQ_SEARCH_BACKEND"]
        else:
            os.environ["HVQ_SEARCH_BACKEND"] = before


def hvq_search(backend: Any, latents: Tensor, codebook: Tensor) -> Callable[[], Any]:
    return lambda: nearest_code(latents, codebook, backend=backend)


def faiss_search(latents: Tensor, codebook: Tensor) -> Callable[[], Any]:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.numpy())
    array = latents.numpy()
    return lambda: index.search(array, 1)


def plain_search(latents: Tensor, codebook: Tensor) -> Callable[[], Any]:
    """Distances as a product, in blocks that stay in the cache, and their argmin."""
    half_norms = 0.5 * codebook.square().sum(dim=1)
    rows = max(1, 2**20 // len(codebook))
    return lambda: torch.cat(
        [torch.addmm(half_norms, block, codebook.T, alpha=-1).argmin(dim=1) for block in latents.split(rows)]
    )


def compiled_search(latents: Tensor, codebook: Tensor) -> Callable[[], Any]:
    """The plain way, without blocks, by `torch.compile`."""

    @torch.compile(dynamic=False)
    def nearest(rows: Tensor, vectors: Tensor) -> Tensor:
        return torch.addmm(0.5 * vectors.square().sum(dim=1), rows, vectors.T, alpha=-1).argmin(dim=1)

    return lambda: torch.cat([nearest(block, codebook) for block in latents.split(2**33 // 4 // len(codebook))])


def flash_search(latents: Tensor, codebook: Tensor) -> Callable[[], Any]:
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    rows, vectors = latents.unsqueeze(0), codebook.unsqueeze(0)
    norms = rows.square().sum(dim=2)
    return lambda: euclid_assign_triton(rows, vectors, norms)


def hvq_step(backend: str, latents: Tensor, codebook: Tensor) -> Callable[[], Any]:
    quantizer = VectorQuantizer(codebook_size=len(codebook), code_dimension=codebook.shape[1], decay=DECAY)
    quantizer.to(latents.device)
    quantizer.codebooks[0].vectors.copy_(codebook)
    quantizer.codebooks[0].moving_sums.copy_(codebook)
    codebooks = CodebookStep({"level": quantizer})
    inputs = on_grid(latents).detach().requires_grad_()

    def step() -> None:
        with search_backend(backend):
            result = quantizer(inputs)
        (result.vectors.sum() + BETA * result.losses["commitment"]).backward()
        inputs.grad = None
        codebooks.add({"level": result})
        codebooks.step()

    return step


def package_step(latents: Tensor, codebook: Tensor) -> Callable[[], Any]:
    """`vector-quantize-pytorch` with moving averages and straight-through, in the layout that it works in."""
    from vector_quantize_pytorch import VectorQuantize

    quantizer = VectorQuantize(
        dim=codebook.shape[1],
        codebook_size=len(codebook),
        decay=DECAY,
        commitment_weight=BETA,
        rotation_trick=False,
        threshold_ema_dead_code=0,
    ).to(latents.device)
    inputs = on_grid(latents).flatten(2).transpose(1, 2).contiguous().detach().requires_grad_()

    def step() -> None:
        vectors, _, loss = quantizer(inputs)
        (vectors.sum() + loss.sum()).backward()
        inputs.grad = None

    return step


def plain_step(latents: Tensor, codebook: Tensor) -> Callable[[], Any]:
    """As it is commonly written: a whole distance matrix, its argmin as one-hot rows, and a product to sum them."""
    vectors, counts, sums = codebook.clone(), torch.ones(len(codebook), device=codebook.device), codebook.clone()
    inputs = latents.detach().clone().requires_grad_()

    def step() -> None:
        flat = inputs.detach()
        distances = flat.square().sum(1, keepdim=True) - 2 * flat @ vectors.T + vectors.square().sum(1)
        codes = distances.argmin(dim=1)
        one_hot = functional.one_hot(codes, len(vectors)).to(flat.dtype)
        quantized = one_hot @ vectors
        loss = BETA * functional.mse_loss(inputs, quantized)
        straight = inputs + (quantized - inputs).detach()
        (straight.sum() + loss).backward()
        inputs.grad = None
        counts.lerp_(one_hot.sum(dim=0), 1 - DECAY)
        sums.lerp_(one_hot.T @ flat, 1 - DECAY)
        vectors.copy_(sums / counts.clamp(min=1e-5).unsqueeze(1))

    return step


def implementations(what: str, device: str) -> dict[str, Callable[[Tensor, Tensor], Callable[[], Any]]]:
    """Makers of repetitions by name, the project's own first."""
    backends = available_backends(device)
    if what == "search":
        own = {f"hvq/{name}": lambda x, c, name=name: hvq_search(name, x, c) for name in backends}
        peers = {"faiss": faiss_search} if device == "cpu" else {"flash-kmeans": flash_search}
        compiled = {} if device == "cpu" else {"torch.compile": compiled_search}
        return {**own, **peers, "plain": plain_search, **compiled}
    own = {f"hvq/{name}": lambda x, c, name=name: hvq_step(name, x, c) for name in backends}
    return {**own, "vector-quantize-pytorch": package_step, "plain": plain_step}


def reason_to_skip(what: str, implementation: str, size: Size, device: str) -> str | None:
    """Why an implementation is left out; None where it is not."""
    modules = {"faiss": "faiss", "vector-quantize-pytorch": "vector_quantize_pytorch", "flash-kmeans": "flash_kmeans"}
    module = modules.get(implementation)
    if module and importlib.util.find_spec(module) is None:
        return f"the package {implementation} is not installed"
    matrices = MATRICES.get(implementation, {}).get(what, 0)
    memory = total_memory(device)
    if matrices * size[0] * size[1] * 4 > memory / 2:
        return f"its N x K matrices would take more than half of {memory / 2**30:.0f} GiB"
    return None


def total_memory(device: str) -> int:
    """Bytes of the device."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# --- measuring -------------------------------------------------------------------------------------------------------


def peak_mib(what: str, implementation: str, size: Size, device: str, file: Path | None) -> float | None:
    """MiB beyond its inputs that a process of its own needs for one repetition, after one for warming up."""
    words = ["--peak", what, implementation, *map(str, size), "--device", device]
    words += ["--latents", str(file)] if file else []
    return peak_in_a_process(__file__, words, f"{what} by {implementation}")


def print_peak(what: str, implementation: str, size: Size, device: str, file: Path | None) -> None:
    """What a process that `peak_mib` starts does."""
    latents, codebook = make_inputs(size, device, file)
    small = latents[:4096] if len(latents) > 4096 else latents
    make = implementations(what, device)[implementation]
    make(small, codebook[:64])()
    print(peak_beyond(make(latents, codebook), device))


def measure(what: str, size: Size, arguments: argparse.Namespace, rate: float, done: set[str]) -> list[Row]:
    """All implementations that are not done yet, on one size."""
    latents, codebook = make_inputs(size, arguments.device, arguments.latents)
    size = (len(latents), *codebook.shape)
    chosen: dict[str, Callable[[], Any]] = {}
    for name, make in implementations(what, arguments.device).items():
        if name in done:
            continue
        if reason := reason_to_skip(what, name, size, arguments.device):
            print(f"skipped: {what} {size} by {name}: {reason}", file=sys.stderr)
            continue
        chosen[name] = make(latents, codebook)
    seconds = interleaved(chosen, 2 if arguments.quick else 5, arguments.device)
    floor = 2 * size[0] * size[1] * size[2] / rate
    return [
        Row(
            what,
            *size,
            name,
            round(1e3 * value, 3),
            peak_mib(what, name, size, arguments.device, arguments.latents),
            round(value / floor, 3),
        )
        for name, value in seconds.items()
    ]


# --- output ----------------------------------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    """Markdown, with the ratio of each time to that of the best of the project's own."""
    lines = ["| what | N, K, D | implementation | ms | peak MiB | times floor |", "| --- " * 6 + "|"]
    for row in rows:
        peak = "-" if row.peak_mib is None else f"{row.peak_mib:.0f}"
        size = f"{row.n:,}, {row.k:,}, {row.d}"
        lines.append(f"| {row.what} | {size} | {row.implementation} | {row.ms:.1f} | {peak} | {row.times_floor:.2f} |")
    return "\n".join(lines)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer repetitions: under two minutes")
    parser.add_argument("--json", type=Path, help="file of rows; what it holds is not measured again")
    parser.add_argument("--latents", type=Path, help="safetensors with `latents` [N, D] and `codebook` [K, D]")
    parser.add_argument("--what", nargs="+", choices=["search", "step"], default=["search", "step"])
    parser.add_argument("--peak", nargs=5, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Measure what is not there yet, and print the table."""
    arguments = parse_arguments(words)
    if arguments.peak:
        what, implementation, *size = arguments.peak
        print_peak(what, implementation, tuple(map(int, size)), arguments.device, arguments.latents)
        return 0
    sizes = {"cpu": CPU_SIZES, "cuda": CUDA_SIZES}[arguments.device]
    sizes = QUICK_SIZES if arguments.quick and arguments.device == "cpu" else sizes
    if arguments.latents:
        latents, codebook = make_inputs((0, 0, 0), "cpu", arguments.latents)
        sizes = [(len(latents), *codebook.shape)]
    rate = best_rate(arguments.device)
    rows = load_rows(arguments.json, Row)
    for size in sizes:
        for what in arguments.what:
            done = {row.implementation for row in rows if (row.what, row.n, row.k, row.d) == (what, *size)}
            rows += measure(what, size, arguments, rate, done)
            save_rows(arguments.json, rows)
    print(about(arguments.device, rate))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
