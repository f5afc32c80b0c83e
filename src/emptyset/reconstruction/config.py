"""Settings that reconstruction methods share, and what a method asks of the machine."""

from dataclasses import dataclass

from emptyset.inversion.compilation import PRECISIONS
from emptyset.inversion.setting_checks import (
    require_choice,
    require_not_negative,
    require_positive,
    require_share,
)
from emptyset.quantizers.learned_step import MASKS

INPUTS = ("quantized", "float", "mixed")
ORDERS = ("epochs", "fresh", "replacement")
WEIGHTINGS = ("none", "fisher", "fisher_full")


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """Settings of every reconstruction method.

    Attributes:
        steps: Optimizer steps of every block (or layer); 0: every weight is rounded to nearest.
        batch_size: Images in one step; fewer where there are fewer.
        rounding_learning_rate: Adam's step size of V, from which the rounding bits follow.
        penalty: λ, weight of what pushes every rounding to 0 or 1.
        warm_up: Share of the steps before the penalty sets in.
        beta_start: β when the penalty sets in;
        beta_end: it falls to this, in a line.
        patience: Stop a block after so many checks without a lower error (rounding decided, as it
            would be in the end), and take the best; 0: never, as published.
        check_every: Steps between two checks; NaN is looked for then, too.
        precision: Of products while learning: ``float32``, ``bfloat16``, or ``auto``: bfloat16 for
            blocks of at most 4 bits where the hardware is faster so. Errors are always measured in
            float32.
        memory: What all of this process may take [GB]; cached inputs and targets that do not fit go
            to files without a name in the folder TMPDIR (else /var/tmp), with the same result. On a
            GPU they take what is free of its memory.
        half_caches: Cache in bfloat16 before files are used. Results then differ a little, by how
            much fits; with files alone they never do, so it is off.
    """

    steps: int = 20_000
    batch_size: int = 32
    rounding_learning_rate: float = 1e-3
    penalty: float = 0.01
    warm_up: float = 0.2
    beta_start: float = 20.0
    beta_end: float = 2.0
    patience: int = 0
    check_every: int = 100
    precision: str = "auto"
    memory: float = 8.0
    half_caches: bool = False

    def __post_init__(self) -> None:
        require_not_negative(self, "steps", "penalty", "patience")
        require_positive(
            self, "batch_size", "rounding_learning_rate", "check_every", "memory", "beta_end"
        )
        require_share(self, "warm_up")
        require_choice(self, "precision", PRECISIONS)
        if self.beta_start < self.beta_end:
            raise ValueError(
                f"'beta_start' must be at least 'beta_end' ({self.beta_end}), as β falls. "
                f"Got {self.beta_start}."
            )


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a method learns, from what, and by which rule.

    Attributes:
        name: The method, for messages and kept states; with its stage where it has several.
        config: What all methods share.
        steps: Optimizer steps of every unit.
        by_layer: A unit is a single layer with the clip behind it, not a block.
        rounding: Whether rounding is learnt.
        weight_scale_rate: Adam's step size of the weights' scales; 0: they stay.
        activation_scale_rate: Of the activations' scales; 0: they stay.
        relative_scales: Scales are learnt as ``start · exp(p)``, so that rates are relative; else
            as ``start + p``, so that rates have the tensor's units.
        scale_gradient_factor: Multiply the gradient of an activation's scale by
            ``1 / sqrt(elements · steps above zero)``, as LSQ.
        inputs: What a unit reads while it learns: the student's values, the float network's, or
            each element from either at random.
        prefix_activations: Whether the student's values come from quantized activations.
        activations: Whether activations are quantized within the unit.
        kept: Share of elements that are quantized while learning, in ``mixed`` inputs and in every
            quantizer of the unit; 1: all. Rounded to 1/256.
        mask: Where gradients pass a quantizer: ``code``, ``value`` or ``none``.
        exponent: Of the distance of outputs.
        weighting: What an output's distance is multiplied by.
        search_images: Images that ranges of activations are searched on first; 0: they stay.
        order: How batches are drawn: every image once per epoch, every batch anew without
            repetition, or with repetition.
    """

    name: str
    config: ReconstructionConfig
    steps: int
    by_layer: bool = False
    rounding: bool = True
    weight_scale_rate: float = 0.0
    activation_scale_rate: float = 0.0
    relative_scales: bool = False
    scale_gradient_factor: bool = False
    inputs: str = "quantized"
    prefix_activations: bool = True
    activations: bool = True
    kept: float = 1.0
    mask: str = "code"
    exponent: float = 2.0
    weighting: str = "none"
    search_images: int = 0
    order: str = "fresh"

    def __post_init__(self) -> None:
        require_choice(self, "inputs", INPUTS)
        require_choice(self, "mask", MASKS)
        require_choice(self, "weighting", WEIGHTINGS)
        require_choice(self, "order", ORDERS)
        require_share(self, "kept")
