"""Works through the rows of a comparison; what is done is not done again."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from emptyset.comparison.folder import ROWS
from emptyset.comparison.judges import given_judges, pooled
from emptyset.comparison.judging import Judge
from emptyset.comparison.rows import (
    Spending,
    Surroundings,
    measured,
    method_row,
    real_row,
    spending,
    working_in,
)
from emptyset.comparison.settings import REAL, RowSection
from emptyset.errors import EmptysetError, MissingExtraError, RunFolderError
from emptyset.job.image_stages import KnownImages, fitted_images, judged_images
from emptyset.recipe import Recipe
from emptyset.report.contact_sheet import ContactSheet, contact_sheet

# Of one row on the page; ten rows of large images stay below ten megabytes.
SHEET_TILES, SHEET_CLASSES = 40, 10

Tell = Callable[["Work"], None]
"""Called after every row with what is known so far."""


@dataclass
class Work:
    """A comparison at work.

    Attributes:
        at: What all rows share.
        rows: Finished rows, in the order of the comparison; JSON data.
        sheets: What the images of each row look like.
        judged: What every student is judged on.
        faults: Rows that could not be finished, and why.
    """

    at: Surroundings
    rows: list[dict[str, Any]] = field(default_factory=list)
    sheets: dict[str, ContactSheet] = field(default_factory=dict)
    judged: KnownImages | None = None
    faults: dict[str, EmptysetError] = field(default_factory=dict)
    _spent: dict[str, Spending] = field(default_factory=dict)

    def run(self, tell: Tell) -> None:
        """All rows; one that fails does not stop the others.

        Raises:
            EmptysetError: The first fault, where no row could be finished.
        """
        comparison = self.at.comparison
        self.judged = given_judges(self.at, self._recipe(comparison.methods[0]))
        if self.judged is None:
            self.judged = self._pool()
        memory = self._recipe(comparison.methods[0]).memory
        judge = Judge(self.at.teacher, self.judged, comparison.seed, memory)
        for row in comparison.methods:
            self._attempt(row.name, lambda row=row: self._method(row, judge))  # type: ignore[misc]
            tell(self)
        if comparison.real is not None:
            self._attempt(REAL, lambda: self._real(judge))
            tell(self)
        if self.faults and len(self.faults) == len(self.rows):
            raise next(iter(self.faults.values()))

    def _attempt(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """A row, or why there is none."""
        if name not in self.faults:
            try:
                self.rows.append(work() | {"fault": None})
                return
            except EmptysetError as error:
                self._note_fault(name, error)
        self.rows.append(
            {
                "name": name,
                "folder": f"{ROWS}/{name}",
                "fault": str(self.faults[name]),
                "images": None,
                "quality": None,
                "student": None,
                "remark": None,
            }
        )

    def _note_fault(self, name: str, error: EmptysetError) -> None:
        """Faults of a row are told in the table; a disk or an installation stops everything."""
        if isinstance(error, RunFolderError | MissingExtraError):
            raise error
        self.faults[name] = error
        self.at.monitor.note(f"Warning: {name}: {error}")

    # Rows ------------------------------------------------------------------------------------

    def _method(self, row: RowSection, judge: Judge) -> dict[str, Any]:
        spent = self._spending(row)
        with working_in(self.at, row.name, self._recipe(row, spent)) as context:
            fitted = fitted_images(context)
            found = measured(self.at, context, fitted, judge)
            self._show(row.name, fitted)
            context.folder.close()
        return method_row(self.at, row, spent, found)

    def _real(self, judge: Judge) -> dict[str, Any]:
        recipe = Recipe.parse(self.at.comparison.real_recipe_data())
        with working_in(self.at, REAL, recipe) as context:
            fitted = fitted_images(context)
            found = measured(self.at, context, fitted, judge)
            self._show(REAL, fitted)
            context.folder.close()
        return real_row(found)

    def _show(self, name: str, fitted: KnownImages) -> None:
        teacher = self.at.teacher
        self.sheets[name] = contact_sheet(
            fitted.images,
            teacher.input,
            class_names=teacher.class_names,
            most_tiles=SHEET_TILES,
            most_classes=SHEET_CLASSES,
        )

    def _spending(self, row: RowSection) -> Spending:
        if row.name not in self._spent:
            self._spent[row.name] = spending(self.at, row)
        return self._spent[row.name]

    def _recipe(self, row: RowSection, spent: Spending | None = None) -> Recipe:
        """The recipe of a row; ``emptyset run`` would go on with it to a file."""
        comparison = self.at.comparison
        data = comparison.recipe_data(row, spent.settings if spent else None)
        share = -(-comparison.judged_count // len(comparison.methods))
        evaluate = dict(data.get("evaluate", {})) | {"count": max(2, share)}
        if comparison.labelled is not None:
            evaluate["images"] = comparison.labelled
        return Recipe.parse(data | {"evaluate": evaluate})

    # Images to judge on ----------------------------------------------------------------------

    def _pool(self) -> KnownImages:
        """Equally many images of every method, made with another seed."""
        parts: list[KnownImages] = []
        for row in self.at.comparison.methods:
            try:
                spent = self._spending(row)
                with working_in(self.at, row.name, self._recipe(row, spent)) as context:
                    judged = judged_images(context, fitted_images(context))
                    # A row without images has none to judge on either.
                    parts += [] if judged is None else [judged]
            except EmptysetError as error:
                self._note_fault(row.name, error)
        if not parts:
            raise next(iter(self.faults.values()))
        return pooled(parts)
