"""A trained network, its input, and where both came from."""

import copy
import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from emptyset.errors import TeacherError

# Named here too: it is part of what a teacher is.
from emptyset.images.input_spec import InputSpec as InputSpec
from emptyset.teachers.last_layer import last_layer
from emptyset.teachers.unwrapping import unwrapped


@dataclass(frozen=True)
class StoredBatchNorm:
    """One BatchNorm layer of the teacher and the statistics it stored while training.

    Attributes:
        name: Module path.
        module: The layer; its *input* has the stored statistics.
        mean: ``(C,)`` running mean [feature units].
        var: ``(C,)`` running variance [feature units squared].
    """

    name: str
    module: nn.Module
    mean: Tensor
    var: Tensor


@dataclass(frozen=True)
class Teacher:
    """A trained classifier, frozen, in eval mode.

    Attributes:
        name: As the user wrote it, for example ``embedded:digits-resnet``.
        module: Maps ``(N, C, H, W)`` normalised images to ``(N, K)`` logits. Of one that is wrapped
            (``DataParallel``, ``torch.compile``) the network inside.
        input: Shape and preprocessing.
        class_names: One per class, or None where unknown.
        weights_hash: SHA-256 over the sorted state dict, hexadecimal.
        provenance: Where the weights came from (JSON data).

    Raises:
        TeacherError: If the module has parameters of another floating type than float32.
    """

    name: str
    module: nn.Module
    input: InputSpec
    class_names: tuple[str, ...] | None = None
    weights_hash: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "module", unwrapped(self.module))
        _detach_computed(self.module)
        for name, value in self.module.named_parameters():
            if value.is_floating_point() and value.dtype != torch.float32:
                dtype = str(value.dtype).removeprefix("torch.")
                raise TeacherError(
                    f"{self.name}: parameter '{name}' is {dtype}, and networks "
                    "are quantized from float32. Give module.float()."
                )

    @property
    def public_name(self) -> str:
        """The name; of weights from a file without the path, which is nobody else's business."""
        source = self.name.partition(":")[0]
        return source if source == "file" else self.name

    def stored_batch_norms(self) -> list[StoredBatchNorm]:
        """Every BatchNorm layer that stored its statistics, in module order.

        BatchNorm2d and what derives from it, BatchNorm1d, SyncBatchNorm, and frozen ones that are
        no BatchNorm of torch but hold the same: whatever keeps a running mean and variance per
        channel. InstanceNorm does too, yet of single images.
        """
        found = []
        for name, module in self.module.named_modules():
            mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
            if (
                isinstance(mean, Tensor)
                and isinstance(var, Tensor)
                and mean.dim() == 1
                and mean.shape == var.shape
                and not isinstance(module, nn.modules.instancenorm._InstanceNorm)
            ):
                found.append(StoredBatchNorm(name, module, mean, var))
        return found

    def classifier_weight(self) -> Tensor | None:
        """Weight of the layer that decides, ``(K, features)``; None where ``last_layer`` has none.

        The network is called once.
        """
        # A copy: in training mode a forward would change what BatchNorm stores.
        name = last_layer(copy.deepcopy(self.module).eval(), self.example(1))
        if name is None:
            return None
        weight = self.module.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        return weight.flatten(1)

    def example(self, count: int = 2) -> Tensor:
        """``(count, C, H, W)`` zeros on the teacher's device, to trace with."""
        parameter = next(self.module.parameters(), torch.zeros(()))
        return torch.zeros(count, *self.input.shape, device=parameter.device)


def _detach_computed(module: nn.Module) -> None:
    """What hooks computed with gradients (`torch.nn.utils.weight_norm`, `spectral_norm`) cannot be
    copied; without them it is the same values, which the hook computes anew in every forward.
    """
    for part in module.modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                setattr(part, name, value.detach())


def hash_of_weights(module: nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of the sorted state dict, hexadecimal."""
    digest = hashlib.sha256()
    module = unwrapped(module)
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, Tensor):  # what a module keeps as its extra state
            digest.update(f"{name}{value!r}".encode())
            continue
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        # Flat first: a tensor without axes cannot be viewed as bytes.
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
