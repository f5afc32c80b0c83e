"""The shell of every inversion method: from settings and a teacher to a set of images."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from emptyset.errors import RecipeError
from emptyset.images.image_set import Batch, ImageSet
from emptyset.inversion.batch_plan import require_count
from emptyset.inversion.canvas import Pixels, Spectrum
from emptyset.inversion.config import InversionConfig
from emptyset.inversion.engine import gathered, invert_into
from emptyset.inversion.method import Method
from emptyset.inversion.standard_units import standard_units
from emptyset.inversion.updates import unclipped
from emptyset.monitor import SILENT, Monitor
from emptyset.teachers.teacher import Teacher


class InversionSynthesizer(ABC):
    """A synthesizer that consists of settings and of the parts that the engine runs.

    Attributes:
        config: The method's settings.
    """

    config: InversionConfig

    @abstractmethod
    def method(self, teacher: Teacher) -> Method:
        """The parts that the engine runs.

        Args:
            teacher: What the images are made for.

        Raises:
            UnsupportedModelError: If the teacher lacks what the method needs.
            ImagesError: If a class is asked for that the teacher does not have.
        """

    def synthesize(
        self, teacher: Teacher, count: int, *, seed: int, monitor: Monitor = SILENT
    ) -> ImageSet:
        """Exactly ``count`` images, with targets where the method makes them for classes.

        Args:
            teacher: See the method's module docstring for what it needs.
            count: At least 2.
            seed: Seed of everything random.
            monitor: Hears of progress, keeps and restores states.

        Raises:
            UnsupportedModelError: If the teacher lacks what the method needs.
            ImagesError: If the count or a class cannot be, or the loss is not finite.
            RecipeError: If settings need something that was not given.
        """
        batches: list[Batch] = []
        entry = self.synthesize_into(batches.append, teacher, count, seed=seed, monitor=monitor)
        return gathered(batches, entry)

    def synthesize_into(
        self,
        take: Callable[[Batch], None],
        teacher: Teacher,
        count: int,
        *,
        seed: int,
        monitor: Monitor = SILENT,
    ) -> dict[str, Any]:
        """The same images, handed on as soon as they are finished instead of gathered in memory.

        Args:
            take: Called with images and targets, in order; ``count`` of them in all.
            teacher: As ``synthesize``.
            count: At least 2.
            seed: Seed of everything random.
            monitor: Hears of progress, keeps and restores states.

        Returns:
            The entry for the history of the images.

        Raises:
            UnsupportedModelError: As ``synthesize``; so are the others.
            ImagesError: See there.
            RecipeError: See there.
        """
        method = self._on_its_canvas(self.method(teacher), teacher)
        require_count(method.name, count)
        settings = asdict(self.config)
        if method.others:
            settings["teachers"] = [other.name for other in method.others]
            settings["teacher_hashes"] = [other.weights_hash for other in method.others]
        return invert_into(
            take, method, teacher, count, seed=seed, settings=settings, monitor=monitor
        )

    def _on_its_canvas(self, method: Method, teacher: Teacher) -> Method:
        """The method with its pixels replaced by their spectrum, where that is asked for."""
        if self.config.spectrum == 0:
            return method
        if not isinstance(method.canvas, Pixels):
            raise RecipeError(
                f"{method.name}: its images come from a network, not from pixels, so there is no "
                "'spectrum' to optimise. Set it to 0."
            )
        low, high = standard_units(teacher.input).pixel_range()
        canvas = Spectrum(self.config.spectrum, low, high, spread=method.canvas.spread)
        # The range of pixels is not that of coefficients; the canvas keeps it.
        groups = tuple(replace(group, update=unclipped(group.update)) for group in method.groups)
        return replace(method, canvas=canvas, groups=groups)
