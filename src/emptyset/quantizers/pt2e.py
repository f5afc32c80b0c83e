"""The one door to torchao's PT2E flow.

torchao prints warnings about compiled extensions that do not load on a CPU-only machine and about
deprecations of torch that users can do nothing about; they are silenced here and nowhere else.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator


class _Silence(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return False


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Hold back the log lines and warnings of torch and torchao about themselves.

    Meant for imports, captures and exports. Errors still raise.
    """
    names = (
        "torch",
        "torch.fx.experimental.symbolic_shapes",
        "torchao",
        "torch.utils._pytree",
        "torch.onnx",
        "torch.export",
        "onnxscript",
        "onnx_ir",
    )
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in names)]
    silence = _Silence()
    handlers = [handler for logger in loggers for handler in logger.handlers]
    targets: list[logging.Filterer] = [*loggers, *handlers]
    # Library loggers that have no handler yet print through this one.
    if logging.lastResort is not None:
        targets.append(logging.lastResort)
    for target in targets:
        target.addFilter(silence)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for target in targets:
            target.removeFilter(silence)


with quietly():
    from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import (
        QuantizationAnnotation,
        QuantizationSpec,
        Quantizer,
        SharedQuantizationSpec,
    )

__all__ = [
    "FakeQuantizeBase",
    "QuantizationAnnotation",
    "QuantizationSpec",
    "Quantizer",
    "SharedQuantizationSpec",
    "convert_pt2e",
    "prepare_pt2e",
    "quietly",
]
