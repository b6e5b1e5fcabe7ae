"""Levels, the stack that they make, and the losses that train it."""

from hvq.autoencoders.build import build_autoencoder, check_autoencoder, convolutional_autoencoder
from hvq.autoencoders.build_losses import build_loss
from hvq.autoencoders.convolution import (
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    Enlargement,
    ResidualBlock,
    StagedEnlargement,
)
from hvq.autoencoders.description import AutoencoderDescription
from hvq.autoencoders.initialization import initialize_codebooks
from hvq.autoencoders.level import Level, weights_channels_last
from hvq.autoencoders.losses import AutoencoderLoss
from hvq.autoencoders.perceptual import FeatureDistance
from hvq.autoencoders.reconstruction_losses import ReconstructionLoss, WeightedLoss
from hvq.autoencoders.rezero import RectifiedEnlargement, ReZeroBlock, ReZeroDecoder, ReZeroEncoder
from hvq.autoencoders.stack import Autoencoder, AutoencoderResult
from hvq.autoencoders.tiling import decode_tiled, encode_tiled, needed_overlap

__all__ = [
    "Autoencoder",
    "AutoencoderDescription",
    "AutoencoderLoss",
    "AutoencoderResult",
    "ConvolutionalDecoder",
    "ConvolutionalEncoder",
    "Enlargement",
    "FeatureDistance",
    "Level",
    "ReZeroBlock",
    "ReZeroDecoder",
    "ReZeroEncoder",
    "ReconstructionLoss",
    "RectifiedEnlargement",
    "ResidualBlock",
    "StagedEnlargement",
    "WeightedLoss",
    "build_autoencoder",
    "build_loss",
    "check_autoencoder",
    "convolutional_autoencoder",
    "decode_tiled",
    "encode_tiled",
    "initialize_codebooks",
    "needed_overlap",
    "weights_channels_last",
]
