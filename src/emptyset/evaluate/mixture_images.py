"""Images of chosen mixtures of classes, as a trained generator makes them one by one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from emptyset.errors import RecipeError, UnsupportedModelError
from emptyset.generators.class_mixture import ClassMixture
from emptyset.generators.conditions import Drawn, SuperposedEmbedding
from emptyset.generators.generator_source import GeneratorSource
from emptyset.inversion.standard_units import standard_units
from emptyset.teachers.teacher import Teacher

AUTO, ZERO, DRAWN = "auto", "zero", "drawn"
NOISES = (AUTO, ZERO, DRAWN)


class MixtureImages:
    """Asks a generator for exact labels.

    The generator's BatchNorm uses its running statistics here, so that an image does not depend on
    the others of its batch; in training, and where a set of images is drawn, it uses the batch's.

    Attributes:
        noise: Of a sweep between two classes: ``zero``, or ``drawn``: the same for all its images.
    """

    def __init__(
        self,
        source: GeneratorSource,
        teacher: Teacher,
        *,
        noise: str = AUTO,
        batch_size: int = 256,
    ) -> None:
        """Take a generator; it stays as it is.

        Args:
            source: Live, or read from its file.
            teacher: The network that it was made for.
            noise: ``zero``, ``drawn``, or ``auto``: zero where the latent is noise *added* to
                embeddings, drawn where it is a multiple of the noise or nothing but noise.
            batch_size: Images made at a time.

        Raises:
            RecipeError: If ``noise`` is none of these, or zero noise would leave nothing to show.
        """
        self._source, self._batch_size = source, batch_size
        self._units = standard_units(teacher.input)
        if noise not in NOISES:
            raise RecipeError(f"noise: expected one of {', '.join(NOISES)}. Got '{noise}'.")
        adds = isinstance(source.generator.condition, SuperposedEmbedding)
        if noise == ZERO and not adds:
            raise RecipeError(
                f"noise: without any, the latents of this generator ({source.method.name}) are all "
                "the same. Use 'drawn', or 'auto'."
            )
        self.noise = (ZERO if adds else DRAWN) if noise == AUTO else noise

    def require_labels(self) -> None:
        """Refuse a generator that makes images of no class in particular.

        Raises:
            UnsupportedModelError: If it does.
        """
        if not self._source.method.labelled:
            raise UnsupportedModelError(
                f"{self._source.method.name} makes images without labels, so nothing lies between "
                "two of its classes. Use a generator with class embeddings, such as qimera or gdfq."
            )

    def sweep(self, pair: tuple[int, int], steps: int, *, seed: int) -> Tensor:
        """From one class to another in equal steps, with one noise for all.

            λ_t = t / steps;   label_t = (1 − λ_t) · first + λ_t · second

        Args:
            pair: The two classes.
            steps: Number of steps.
            seed: Of the noise, where it is drawn.

        Returns:
            ``(steps + 1, C, H, W)`` float32 [teacher's normalised units], on the CPU.

        Raises:
            UnsupportedModelError: If the generator makes images without labels.
        """
        self.require_labels()
        second = torch.linspace(0, 1, steps + 1, dtype=torch.double).float()
        classes = torch.tensor([pair]).expand(steps + 1, 2)
        mixture = ClassMixture(classes.contiguous(), torch.stack([1 - second, second], dim=1))
        if self.noise == DRAWN:
            drawn = self._with_one_noise(mixture, seed)
        else:
            drawn = self._source.generator.draw(torch.Generator().manual_seed(seed), mixture)
            drawn = drawn | {"noise": torch.zeros_like(drawn["noise"])}
        return torch.cat(list(self._rendered(drawn)))

    def drawn(self, mixture: ClassMixture, *, seed: int) -> Iterator[Tensor]:
        """Images of these labels in batches, each with noise of its own.

        Args:
            mixture: Labels of N images.
            seed: Of the noise.

        Yields:
            ``(n, C, H, W)`` float32 [teacher's normalised units], on the CPU; N together.
        """
        random = torch.Generator().manual_seed(seed)
        for start in range(0, len(mixture.classes), self._batch_size):
            part = slice(start, start + self._batch_size)
            some = ClassMixture(mixture.classes[part], mixture.shares[part])
            drawn = self._source.generator.draw(random, some)
            yield from self._rendered(drawn)

    def _with_one_noise(self, mixture: ClassMixture, seed: int) -> Drawn:
        """Each label drawn alone with the same seed: equal noise, whatever a generator draws."""
        rows = []
        for classes, shares in zip(mixture.classes, mixture.shares, strict=True):
            random = torch.Generator().manual_seed(seed)
            one = ClassMixture(classes[None], shares[None])
            rows.append(self._source.generator.draw(random, one))
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _rendered(self, drawn: Drawn) -> Iterator[Tensor]:
        generator = self._source.generator
        device = next(generator.parameters()).device
        count = len(next(iter(drawn.values())))
        with torch.no_grad(), _judged_alone(generator):
            for start in range(0, count, self._batch_size):
                stop = start + self._batch_size
                part = {name: value[start:stop].to(device) for name, value in drawn.items()}
                yield self._units.to_teacher(generator(part)).float().cpu()


@contextmanager
def _judged_alone(generator: torch.nn.Module) -> Iterator[None]:
    """Inside, BatchNorm uses running statistics, and leaves them as they are."""
    before = generator.training
    generator.eval()
    try:
        yield
    finally:
        generator.train(before)
