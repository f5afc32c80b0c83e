"""An exported file as a function from images to logits, run by ONNX Runtime."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emptyset.errors import ImagesError, MissingExtraError, RunFolderError
from emptyset.exporters.kernels import session


class OnnxClassifier:
    """Runs a file on the CPU; the session is opened once."""

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime  # noqa: F401
        except ImportError as error:
            raise MissingExtraError(
                'Running an ONNX file needs onnxruntime: pip install "emptyset[onnx]".'
            ) from error
        self.path = path
        if not path.is_file():
            raise RunFolderError(f"{path}: no such file. Expected an exported ONNX file.")
        try:
            # As the certificate computes.
            self._session: Any = session(path)
        # The runtime's own exceptions share no base class below Exception.
        except Exception as error:
            raise RunFolderError(
                f"{path}: ONNX Runtime cannot load it ({error}). Export it again."
            ) from error
        self._input = self._session.get_inputs()[0]

    def __call__(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)`` of ``images`` ``(N, C, H, W)`` [teacher's normalised units].

        Raises:
            ImagesError: If the images do not have the shape that the file takes.
        """
        wanted = self._input.shape
        fits = len(wanted) == images.dim() and all(
            not isinstance(size, int) or size == got
            for size, got in zip(wanted, images.shape, strict=True)
        )
        if not fits:
            raise ImagesError(
                f"{self.path}: takes images of shape {wanted}. Got {tuple(images.shape)}."
            )
        values = images.detach().cpu().float().contiguous().numpy()
        return torch.from_numpy(self._session.run(None, {self._input.name: values})[0])
