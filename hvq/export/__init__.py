"""Autoencoders for other programs: images to codes and codes to images, by `torch.export` or ONNX."""

from hvq.export.description import Agreement, ExportDescription, ExportedLevel, ExportedModel, Port
from hvq.export.files import export_autoencoder

__all__ = ["Agreement", "ExportDescription", "ExportedLevel", "ExportedModel", "Port", "export_autoencoder"]
