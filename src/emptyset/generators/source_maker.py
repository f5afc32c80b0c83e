"""The shell of every source: from settings and a teacher to a generator that can be trained."""

from abc import ABC, abstractmethod

from emptyset.generators.generator_source import GeneratorSource
from emptyset.generators.method import GeneratorMethod
from emptyset.teachers.teacher import Teacher


class SourceMaker(ABC):
    """A registered source: settings, and the parts that they come to for a teacher."""

    @abstractmethod
    def method(self, teacher: Teacher) -> GeneratorMethod:
        """The parts.

        Args:
            teacher: What the images are made for.

        Raises:
            UnsupportedModelError: If the teacher lacks what the method needs.
            RecipeError: If settings do not fit the teacher.
        """

    def source(self, teacher: Teacher, *, seed: int) -> GeneratorSource:
        """A fresh source for this teacher, where the teacher is.

        Args:
            teacher: Judges the images; it is copied, never changed. See the method's module
                docstring for what it needs.
            seed: Seed of everything random.

        Raises:
            UnsupportedModelError: If the teacher lacks what the method needs.
            RecipeError: If settings do not fit the teacher.
        """
        return GeneratorSource(self.method(teacher), teacher, seed=seed)
