"""A finished run read back: its student, its images, its page. Needs no hub and no weights file."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emptyset import pipeline
from emptyset.errors import ImagesError, RunFolderError
from emptyset.images.image_set import CARD_NAME, ImageSet
from emptyset.job.from_recipe import labelled_path, load_from, prepare_from
from emptyset.job.generator_report import generator_pictures_of
from emptyset.job.held_out import split
from emptyset.job.image_stages import JUDGED, probes_of
from emptyset.job.mixed_precision import recorded_overrides
from emptyset.recipe import Recipe
from emptyset.recipe_without_images import NONE
from emptyset.run_folder import CONTACT_SHEET, IMAGES, METRICS, STUDENT, RunFolder

if TYPE_CHECKING:
    from emptyset.graph.student import Student
    from emptyset.images.folder import LazyImages


@dataclass(frozen=True)
class Restored:
    """A run as it lies on disk.

    Attributes:
        path: The run folder.
        recipe: What was run.
        student: Refined; in ``float_mode`` it computes what the teacher does.
    """

    path: Path
    recipe: Recipe
    student: "Student"

    def file(self, name: str) -> Path:
        """A file of the run.

        Raises:
            RunFolderError: If it is missing.
        """
        return _existing(self.path, name)

    def fitted_images(self, given: Path | None) -> "ImageSet | LazyImages":
        """The given images, or those the student was fitted to."""
        teacher = self.student.teacher
        if given is not None:
            return pipeline.images_from(given, teacher)
        if self.recipe.images == NONE:
            return probes_of(self.recipe, teacher.input)
        if (self.path / IMAGES / CARD_NAME).is_file():
            return ImageSet.load(self.path / IMAGES)
        if self.recipe.images is not None:
            source = pipeline.images_from(self.recipe.images, teacher)
            return split(source, seed=self.recipe.seed, limit=self.recipe.count)[0]
        raise ImagesError(f"{self.path}: holds no images. Give some with --images DIR.")

    def judged_images(self, given: Path | None) -> "tuple[ImageSet | LazyImages, str]":
        """The given images, or those the run was judged on; and what they are."""
        teacher = self.student.teacher
        path = given or labelled_path(self.recipe)
        if path is not None:
            return pipeline.images_from(path, teacher), str(given or path.name)
        without = self.recipe.images == NONE
        if not without and (self.path / JUDGED / CARD_NAME).is_file():
            return ImageSet.load(self.path / JUDGED), "made with another seed"
        if self.recipe.images is not None and not without:
            source = pipeline.images_from(self.recipe.images, teacher)
            rest = split(source, seed=self.recipe.seed, limit=self.recipe.count)[1]
            if rest is not None:
                return rest, f"part of {self.recipe.images} not used to quantize"
        raise ImagesError(f"{self.path}: holds no images to judge on. Give some with --images DIR.")


def _existing(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise RunFolderError(
            f"{folder / name}: is missing. Run the same command again to finish the run."
        )
    return folder / name


def restore(path: Path) -> Restored:
    """Rebuild a run's student from its recipe and its own weights.

    Raises:
        RunFolderError: If the folder holds no run, or the run has no student yet.
    """
    folder, recipe = RunFolder.open(path)
    state = _existing(path, STUDENT)
    chosen = recorded_overrides(folder, recipe)
    student = prepare_from(recipe, load_from(recipe, pretrained=False), chosen)
    student.load_state(state)
    return Restored(path, recipe, student)


def rewrite_page(path: Path, page: Path) -> None:
    """Write the report of a run again from ``metrics.json`` and its contact sheet."""
    from emptyset.report.contact_sheet import ContactSheet
    from emptyset.report.page import write_page

    folder, _ = RunFolder.open(path)
    metrics = folder.read_json(METRICS)
    sheet = ContactSheet.load(path / CONTACT_SHEET)
    write_page(page, metrics, sheet, generator_pictures_of(folder))
