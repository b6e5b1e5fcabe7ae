"""Programs as ONNX models, and how they are run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.onnx.errors import OnnxExporterError

from hvq.errors import ConfigurationError
from hvq.export.description import ExportedModel

_NEEDED = ("onnx", "onnxscript")
_RUNTIME = "onnxruntime"


def can_run() -> bool:
    """Whether the package onnxruntime is installed."""
    return importlib.util.find_spec(_RUNTIME) is not None


def require_packages() -> None:
    """Refuse to begin what could not be written.

    Raises:
        ConfigurationError: where a package is not installed.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise ConfigurationError(
            f"the format onnx takes the packages {' and '.join(_NEEDED)}, and {' and '.join(missing)} is not "
            'installed: pip install "hvq[export]", or take the format torch_export'
        )


def save_onnx(path: Path, program: ExportedProgram, model: ExportedModel) -> None:
    """Write a program as an ONNX model, with the names of its inputs and outputs.

    Raises:
        ConfigurationError: where ONNX has no word for an operation of it.
    """
    try:
        converted = torch.onnx.export(
            program, input_names=list(model.inputs), output_names=list(model.outputs), verbose=False
        )
    except OnnxExporterError as error:
        raise ConfigurationError(
            f"{path.name} cannot be put into ONNX: {str(error).splitlines()[0]}; take the format torch_export"
        ) from error
    assert converted is not None
    converted.save(path)


class OnnxModel:
    """An ONNX model, run by onnxruntime on the CPU.

    Args:
        path: of the file.
        threads: for one run; as many as torch takes by default.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Outputs by name."""
        names = [port.name for port in self._session.get_outputs()]
        given: dict[str, Any] = {name: tensor.numpy() for name, tensor in inputs.items()}
        outputs = self._session.run(names, given)
        return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}
