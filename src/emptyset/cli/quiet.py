"""The one place where messages of other packages are kept from users of the command line.

Only messages that a user can do nothing about are named here, each with its origin. Library users
see everything: nothing outside the command line calls this.
"""

import logging
import warnings

# Python warnings, by message (regular expression, matched at the start) and origin.
_WARNINGS = (
    # torch.export and torchao use deprecated parts of torch and Python themselves.
    (".*isinstance\\(treespec, LeafSpec\\).*", FutureWarning),
    (".*copyreg.*", FutureWarning),
    (".*is deprecated.*", DeprecationWarning),
    (".*erase_node.*", UserWarning),
    # torch tells CPU users that no accelerator was found when it pins memory or profiles.
    (".*no accelerator is found.*", UserWarning),
    # The ONNX exporter speaks to its own developers.
    (".*# 'dynamic_axes' is not recommended.*", UserWarning),
    ("Exporting a model while it is in training mode.*", UserWarning),
)

_LOGGED = (
    # torchao: its compiled extras are not used here.
    "Failed to load",
    "Skipping import of cpp extensions",
    "KernelPreference",
    # torch.distributed on machines without it.
    "Redirects are currently not supported",
)


class _Unhelpful(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(part in message for part in _LOGGED)


def quieten_imports() -> None:
    """Hide what torch, torchao and the ONNX exporter say to their own developers."""
    for message, category in _WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)
    unhelpful = _Unhelpful()
    # A filter of a logger is not asked about its children's records; handlers are.
    if not logging.root.handlers:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for handler in logging.root.handlers:
        handler.addFilter(unhelpful)
    for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
