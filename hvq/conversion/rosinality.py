"""The autoencoder of rosinality/vq-vae-2-pytorch: a VQ-VAE-2 of two levels, whose decoder sees their vectors.

Its blocks are those of `hvq.autoencoders`, layer by layer, so that its weights are taken as they are.

Letters: D code dimension, K codebook size.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hvq.autoencoders import Autoencoder, build_autoencoder
from hvq.config import AutoencoderConfig
from hvq.conversion.tensors import CODEBOOK_TENSORS, Rule, adopt, count, fill, require_names, shape_of

KIND = "rosinality"
SIGNATURE = ("enc_b.blocks.0.weight", "quantize_t.embed")
"""Names by which a checkpoint of this kind is known."""

# The parts of a model here, each with what it is called there.
_PARTS = {
    "levels.top.encoder.": "enc_t.blocks.",
    "levels.top.projection.": "quantize_conv_t.",
    "levels.top.merge.": "dec_t.blocks.",
    "levels.bottom.encoder.": "enc_b.blocks.",
    "levels.bottom.projection.": "quantize_conv_b.",
    "enlargements.top.0.": "upsample_t.",
    "decoder.": "dec.blocks.",
}
_CODEBOOKS = {"top": "quantize_t", "bottom": "quantize_b"}
# Of the published model: the image over the bottom's grid, and the bottom's over the top's.
_RATIOS = {"top": 2, "bottom": 4}


def convert_rosinality(tensors: Mapping[str, Tensor]) -> tuple[Autoencoder, AutoencoderConfig]:
    """An autoencoder that equals the original, and the configuration it is built from; images are in [-1, 1].

    Args:
        tensors: the state dict of its `VQVAE`, whose sizes are read from the shapes.

    Raises:
        CheckpointError: which names the first tensors that are missing or not understood.
    """
    config = _read_config(tensors)
    model = build_autoencoder(config)
    rules = [
        Rule(name, (source + name.removeprefix(part).replace("layers.", "conv."),))
        for name in model.state_dict()
        for part, source in _PARTS.items()
        if name.startswith(part)
    ]
    codebooks = [f"{name}.{tensor}" for name in _CODEBOOKS.values() for tensor in CODEBOOK_TENSORS]
    require_names(tensors, [*(name for rule in rules for name in rule.sources), *codebooks], KIND)
    fill(model, rules, tensors, KIND)
    for level, name in _CODEBOOKS.items():
        (codebook,) = model.quantizers[level].codebooks
        # There, vectors are columns.
        adopt(codebook, name, tensors[f"{name}.embed"].T, tensors[f"{name}.cluster_size"])
    return model.eval(), config


def _read_config(tensors: Mapping[str, Tensor]) -> AutoencoderConfig:
    code_dimension, width, *_ = shape_of(tensors, "quantize_conv_t.weight", 4, KIND)
    # Behind the strided convolutions and the one that follows them, of which a ratio of 4 has two.
    block = "enc_b.blocks.{}.conv.1.weight"
    number = count(tensors, block, first=5)
    blocks = {
        "width": width,
        "residual_blocks": number,
        **({"residual_width": shape_of(tensors, block.format(5), 4, KIND)[0]} if number else {}),
    }
    levels = {
        level: {
            **blocks,
            "ratio": _RATIOS[level],
            "code_dimension": code_dimension,
            "codebook_size": shape_of(tensors, f"{name}.embed", 2, KIND)[1],
        }
        for level, name in _CODEBOOKS.items()
    }
    return AutoencoderConfig.model_validate(
        {
            "channels": shape_of(tensors, "enc_b.blocks.0.weight", 4, KIND)[1],
            "levels": levels,
            "decoder": {**blocks, "sees": "vectors"},
        }
    )
