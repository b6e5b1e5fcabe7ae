"""Pictures and codes, from disk to tensors: image sources, the loader, and folders of codes."""

from hvq.data.array import ArrayImages, ImageArray, array_sources, read_image_array
from hvq.data.augmentation import Augmentation
from hvq.data.build import build_augmentation, build_sources, build_vectors
from hvq.data.code_files import CodesDescription
from hvq.data.code_writing import CodeExtraction, ShardWriter
from hvq.data.codes import CodeBatch, CodeFolder
from hvq.data.digits import digit_sources
from hvq.data.folder import FolderImages, folder_sources
from hvq.data.hub import HubColumns, HubImages, hub_sources
from hvq.data.loader import SampleKeys, StepSampler, TrainingStream, ordered_batches
from hvq.data.photos import PhotoCrops, photo_sources
from hvq.data.shards import ShardImages, shard_sources
from hvq.data.sources import UNAUGMENTED, Batch, BatchSource, ImageSource, Sources, TensorImages
from hvq.data.stream import StreamedImages, Streaming
from hvq.data.subset import Subset, spread_rows
from hvq.data.tones import tone_sources
from hvq.data.vectors import NamedVectors, read_vectors, write_vectors
from hvq.data.volumes import volume_sources
from hvq.data.waves import WaveFiles, wave_sources

__all__ = [
    "UNAUGMENTED",
    "ArrayImages",
    "Augmentation",
    "Batch",
    "BatchSource",
    "CodeBatch",
    "CodeExtraction",
    "CodeFolder",
    "CodesDescription",
    "FolderImages",
    "HubColumns",
    "HubImages",
    "ImageArray",
    "ImageSource",
    "NamedVectors",
    "PhotoCrops",
    "SampleKeys",
    "ShardImages",
    "ShardWriter",
    "Sources",
    "StepSampler",
    "StreamedImages",
    "Streaming",
    "Subset",
    "TensorImages",
    "TrainingStream",
    "WaveFiles",
    "array_sources",
    "build_augmentation",
    "build_sources",
    "build_vectors",
    "digit_sources",
    "folder_sources",
    "hub_sources",
    "ordered_batches",
    "photo_sources",
    "read_image_array",
    "read_vectors",
    "shard_sources",
    "spread_rows",
    "tone_sources",
    "volume_sources",
    "wave_sources",
    "write_vectors",
]
