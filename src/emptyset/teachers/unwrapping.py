"""The network inside what wraps it for several devices or for speed."""

from typing import Any

from torch import nn

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(module: Any) -> Any:
    """What is inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``.

    Wrappers compute what the network computes, yet give every layer another name, and
    ``torch.export`` refuses them.

    Args:
        module: A network, perhaps wrapped, perhaps more than once; anything else is handed back.
    """
    while isinstance(module, nn.Module):
        if isinstance(module, _PARALLEL):
            module = module.module
        # What `torch.compile` gives; asking for its class would import the compiler.
        elif "_orig_mod" in module._modules:
            module = module._modules["_orig_mod"]
        else:
            break
    return module
