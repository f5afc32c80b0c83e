"""What the user asked for, in one value that every source of teachers reads."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emptyset.errors import TeacherError
from emptyset.teachers.teacher import InputSpec

# A mean lies among the pixels, 0..1. Networks that take other units (-1..1, 0..255) have smaller
# deviations, never one like these.
_LARGEST_MEAN, _LARGEST_STD = 1.0, 5.0


@dataclass(frozen=True)
class TeacherRequest:
    """The arguments of ``load_teacher``; their meaning is told there.

    Attributes:
        full_name: As the user wrote it; of ``file:`` alone with the model's name behind it.
        name: The part behind the prefix.
    """

    full_name: str
    name: str
    model: str | None
    model_args: dict[str, Any]
    input_shape: tuple[int, int, int] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    weights: Path | None
    classes: Path | None
    pretrained: bool
    allow_pickle: bool

    @property
    def wants_hub_weights(self) -> bool:
        """True where the source's own weights are to be loaded."""
        return self.pretrained and self.weights is None

    def refuse_model(self) -> None:
        """Say that ``--model`` belongs to ``file:``.

        Raises:
            TeacherError: If a model was given.
        """
        if self.model is not None:
            raise TeacherError(
                f"{self.full_name}: `--model {self.model}` belongs to `file:`. Leave it out, or "
                "write file:WEIGHTS instead."
            )

    def input(self, known: InputSpec | None) -> InputSpec:
        """What the source knows about the input, with what the user said in its place.

        Raises:
            TeacherError: If something is missing, or the parts do not fit each other.
        """
        missing = [
            option
            for option, value in [
                ("--input CxHxW", self.input_shape),
                ("--mean a,b,c", self.mean),
                ("--std a,b,c", self.std),
            ]
            if value is None
        ]
        if known is None and missing:
            raise TeacherError(
                f"{self.full_name}: the source does not know how images are to be prepared. "
                f"Missing: {', '.join(missing)} (pixels in 0..1; images are "
                "(pixel - mean) / std)."
            )
        spec = known or InputSpec((0, 0, 0), (), ())
        if self.input_shape is not None:
            spec = _reshaped(spec, self.input_shape)
        spec = replace(spec, mean=self.mean or spec.mean, std=self.std or spec.std)
        self._check(spec)
        return spec

    def _check(self, spec: InputSpec) -> None:
        where = self.full_name
        if len(spec.shape) != 3 or any(side < 1 for side in spec.shape):
            raise TeacherError(
                f"{where}: the input must be channels, height, width, each at least 1. Got "
                f"{'x'.join(map(str, spec.shape))}."
            )
        channels = spec.shape[0]
        for option, values in [("mean", spec.mean), ("std", spec.std)]:
            if len(values) != channels:
                raise TeacherError(
                    f"{where}: the input has {channels} channels, but {option} has "
                    f"{len(values)} values ({', '.join(map(str, values))}). Give one value per "
                    f"channel with --{option}."
                )
            if not all(math.isfinite(value) for value in values):
                raise TeacherError(f"{where}: {option} must be finite. Got {values}.")
        if any(value <= 0 for value in spec.std):
            raise TeacherError(f"{where}: std must be above 0. Got {spec.std}.")
        if max(spec.mean) > _LARGEST_MEAN or max(spec.std) > _LARGEST_STD:
            raise TeacherError(
                f"{where}: mean {spec.mean} and std {spec.std} are no values of pixels between 0 "
                "and 1. Those of pixels between 0 and 255 are to be divided by 255."
            )


def _reshaped(spec: InputSpec, shape: tuple[int, int, int]) -> InputSpec:
    """Another input shape; the photo's resize grows or shrinks with the crop."""
    resize = spec.resize
    if resize is not None:
        resize = round(resize * min(shape[1:]) / min(spec.shape[1:]))
    return replace(spec, shape=shape, resize=resize)
