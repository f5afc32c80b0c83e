"""The stages from the images to the report: what goes in, what is written, what is told."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from emptyset import measurement, pipeline
from emptyset.graph.memory import largest_batch
from emptyset.job.context import RunContext
from emptyset.job.from_recipe import layer_image_count, prepare_from
from emptyset.job.generator_report import generator_pictures_of, measured_generator
from emptyset.job.held_out import first
from emptyset.job.image_report import measured_quality, shown_images
from emptyset.job.image_stages import KnownImages
from emptyset.job.kept_records import keep_records, restore_records
from emptyset.job.metrics import collect, file_facts
from emptyset.job.mixed_precision import decided_overrides, recorded_overrides
from emptyset.job.source_stages import (
    beside_of,
    keep_trained,
    keeping_last_good,
    record_beside,
    restore_trained,
    source_identity,
    source_of,
    write_generator,
)
from emptyset.monitor import PrefixedMonitor
from emptyset.recipe import MethodSection
from emptyset.recipe_with_source import takes_source
from emptyset.registry import refiners
from emptyset.report.guard import Verdict, judge
from emptyset.report.layer_table import layer_table
from emptyset.run_folder import (
    CERTIFICATE,
    CONTACT_SHEET,
    LAST_GOOD,
    METRICS,
    MODEL,
    REJECTED,
    REPORT,
    STUDENT,
    Workplace,
)
from emptyset.settings import checked_config

if TYPE_CHECKING:
    from emptyset.graph.student import Student

GUARD_IMAGES = 512
# A student that was saved in another form is made again. 2: every layer's weight at LAYER.weight.
STUDENT_FORMAT = 2
FLOAT_FILE = "float.onnx"
UNKNOWN_LOSS = (
    "there was no image to compare teacher and student on, so what was lost is not known. Give "
    "some: emptyset evaluate RUN --images DIR."
)


def prepared_early(context: RunContext) -> "Student | None":
    """The student before any image is made: what cannot be quantized is told at once.

    None where a student is there already, or where images are needed to choose its bits.

    Raises:
        RecipeError: If the plan does not fit the network.
        CaptureError: If the network cannot be captured.
    """
    recipe = context.recipe
    if context.folder.record("student") is not None or recipe.mixed_precision is not None:
        return None
    return prepare_from(recipe, context.teacher)


class Stages:
    """One method per stage, in the order of the data flow."""

    def __init__(
        self,
        context: RunContext,
        fitted: KnownImages,
        judged: KnownImages | None,
        prepared: "Student | None" = None,
    ) -> None:
        self._context = context
        self._fitted = fitted
        self._judged = judged
        self._prepared = prepared
        self._student: Student | None = None

    def look_at(self, fitted: KnownImages, judged: KnownImages | None) -> None:
        """From here on these are the run's images: its source made them when it was trained."""
        self._fitted, self._judged = fitted, judged

    # Student ---------------------------------------------------------------------------------

    def student(self) -> None:
        """Choose bits where asked, prepare and refine; the outcome is one safetensors file."""
        context, recipe = self._context, self._context.recipe
        chosen = decided_overrides(context, self._fitted)
        inputs = [
            "student",
            context.teacher_identity(),
            self._fitted.identity,
            recipe.plan.model_dump(),
            [section.model_dump() for section in recipe.refine],
            recipe.seed,
            *([chosen] if chosen else []),
            *source_identity(recipe),
            STUDENT_FORMAT,
        ]

        def work(at: Workplace) -> dict[str, Any]:
            student = self._prepared or prepare_from(recipe, context.teacher, chosen)
            for index, section in enumerate(recipe.refine):
                self._refine(student, section, index, at)
            student.save(at.aside / STUDENT)
            # Of an earlier recipe that diverged in this folder.
            (context.folder.path / LAST_GOOD).unlink(missing_ok=True)
            self._student = student
            return {"layers": len(student.layers()), "records": student.records}

        context.run("student", inputs, work)

    def _refine(
        self, student: "Student", section: MethodSection, index: int, at: Workplace
    ) -> None:
        """One refiner; a finished one is not run again after a kill."""
        key = f"refined-{index}"
        state = at.monitor.restore(key)
        source = None
        if self._context.recipe.source is not None and takes_source(
            section.method, section.settings()
        ):
            source = source_of(self._context)
        if state is not None:
            student.load_state_dict(state)
            restore_records(student, at.monitor, f"records-{index}")
            if source is not None:
                restore_trained(source, at.monitor)
        else:
            shown: Any = None if self._fitted.probes else self._fitted.images
            if source is not None:
                shown = beside_of(self._context, source, at.monitor)
            with keeping_last_good(self._context, student, at.monitor):
                pipeline.refine(
                    student,
                    shown,
                    section.method,
                    seed=self._context.recipe.seed,
                    monitor=PrefixedMonitor(at.monitor, f"{index}"),
                    **self._fitting(student, section),
                )
            if source is not None:
                record_beside(shown, student)
                keep_trained(source, at.monitor)
            keep_records(student, at.monitor, f"records-{index}")
            at.monitor.keep(key, student.state_dict, final=True)
        if source is not None:
            write_generator(source, at)

    def _fitting(self, student: "Student", section: MethodSection) -> dict[str, Any]:
        """The refiner's settings, with room no larger than the recipe's memory allows."""
        settings, memory = section.settings(), self._context.recipe.memory
        config = refiners.get(section.method).config
        known = getattr(config, "__dataclass_fields__", {})
        if memory is not None and "memory" in known:
            # It keeps to a limit itself, and what it learns does not depend on it.
            settings.setdefault("memory", memory)
        elif memory is not None and "batch_size" in known:
            made = checked_config(config, settings, where=(section.method,))
            asked = getattr(made, "images_per_update", made.batch_size)
            settings["batch_size"] = largest_batch(student, memory, at_most=asked)
        return settings

    def _batch_size(self) -> int:
        """Images in one forward of a measurement."""
        memory = self._context.recipe.memory
        size = measurement.batch_size_for(self._context.teacher.input.shape)
        return largest_batch(self.ready_student(), memory, at_most=size) if memory else size

    def ready_student(self) -> "Student":
        """The refined student, read back where an earlier process made it."""
        if self._student is None:
            recipe, folder = self._context.recipe, self._context.folder
            chosen = recorded_overrides(folder, recipe)
            self._student = prepare_from(recipe, self._context.teacher, chosen)
            self._student.load_state(self._context.folder.path / STUDENT)
        return self._student

    def _student_digest(self) -> str:
        return self._context.file_digest("student", STUDENT)

    # Guard -----------------------------------------------------------------------------------

    def guard(self) -> Verdict | None:
        """Compare the student with the teacher before any file is written.

        None where there is no image to compare them on.
        """
        context, settings = self._context, self._context.recipe.evaluate
        inputs = [
            "guard",
            self._student_digest(),
            self._judged.identity if self._judged else "nothing to judge on",
            settings.layer_images,
            settings.min_agreement,
        ]
        told = context.run("guard", inputs, self._guard)["verdict"]
        if told is None:
            context.monitor.note(f"Not measured: {UNKNOWN_LOSS}")
            return None
        verdict = Verdict(
            told["agreement"], told["collapsed"], tuple(told["guilty"]), tuple(told["proposal"])
        )
        if verdict.collapsed:
            context.monitor.note(f"Warning: {verdict.message()}")
        return verdict

    def _guard(self, at: Workplace) -> dict[str, Any]:
        recipe, teacher = self._context.recipe, self._context.teacher
        if self._judged is None:
            return {"verdict": None, "agreement": None, "layer_images": 0, "layers": []}
        student, images = self.ready_student(), self._judged.images
        size = self._batch_size()
        found = measurement.measure(
            student,
            teacher,
            first(images, GUARD_IMAGES),
            seed=recipe.seed,
            batch_size=size,
            monitor=at.monitor,
        )
        count = layer_image_count(recipe, teacher)
        batches = list(first(images, count).batches(size))
        rows = layer_table(student, batches, monitor=at.monitor)
        verdict = judge(found.agreement.share, rows, least=recipe.evaluate.min_agreement)
        return {
            "verdict": verdict.to_json(),
            "agreement": asdict(found.agreement),
            "layer_images": sum(len(batch.images) for batch in batches),
            "layers": [row.to_json() for row in rows],
        }

    # File ------------------------------------------------------------------------------------

    def export(self) -> dict[str, Any]:
        """Write the file, prove it, and time it against the float network; the certificate."""
        recipe = self._context.recipe
        inputs = [
            "export",
            self._student_digest(),
            self._fitted.identity,
            recipe.export.model_dump(),
            recipe.hash(),
            recipe.evaluate.latency_rounds,
        ]
        certificate: dict[str, Any] = self._context.run("export", inputs, self._export)[
            "certificate"
        ]
        return certificate

    def _export(self, at: Workplace) -> dict[str, Any]:
        from emptyset.exporters.latency import compare

        recipe, student, aside = self._context.recipe, self.ready_student(), at.aside
        artefact = pipeline.export(
            student,
            aside / MODEL,
            metadata={"recipe_hash": recipe.hash()},
            float_path=aside / FLOAT_FILE,
        )
        certificate = pipeline.certify(
            aside / MODEL,
            student,
            self._fitted.images,
            limit=recipe.export.certificate_images,
            simulation=artefact.simulation,
            image_source=self._fitted.described,
            monitor=at.monitor,
        )
        told = certificate.to_json() | {"summary": certificate.summary()}
        (aside / CERTIFICATE).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        latency = None
        rounds = recipe.evaluate.latency_rounds
        if certificate.holds and rounds:
            example = self._context.teacher.example(1).cpu()
            if not self._fitted.probes:
                example = next(iter(self._fitted.images.batches(1))).images
            timed = compare(aside / MODEL, aside / FLOAT_FILE, example, rounds=rounds)
            latency = {"batch": len(example), **asdict(timed)}
        (aside / FLOAT_FILE).unlink(missing_ok=True)
        if not certificate.holds:
            (aside / MODEL).replace(aside / REJECTED)
        return {"certificate": told, "latency": latency, "file": file_facts(artefact)}

    # Evaluation and report -------------------------------------------------------------------

    def evaluation(self) -> None:
        """Judge the file itself, in ONNX Runtime."""
        context, judged = self._context, self._judged
        inputs = [
            "evaluation",
            context.file_digest("export", MODEL),
            context.teacher_identity(),
            judged.identity if judged else "nothing to judge on",
            context.recipe.seed,
        ]

        def work(at: Workplace) -> dict[str, Any]:
            if judged is None:
                nothing = dict.fromkeys(("on", "agreement", "teacher", "quantized"))
                return nothing | {"count": 0, "labelled": False, "not_measured": UNKNOWN_LOSS}
            found = measurement.measure(
                context.folder.path / MODEL,
                context.teacher,
                judged.images,
                seed=context.recipe.seed,
                batch_size=self._batch_size(),
                monitor=at.monitor,
            )
            if (doubt := found.doubt()) is not None:
                at.monitor.note(f"Warning: {doubt}")
            facts = {
                "doubt": doubt,
                "on": judged.described,
                "count": len(judged.images),
                "made": not judged.real,
            }
            return facts | {"labelled": judged.labelled} | found.to_json()

        context.run("evaluation", inputs, work)

    def report(self, command: str) -> None:
        """Write ``metrics.json``, ``report.html`` and the pictures of its contact sheet."""
        from emptyset.report.page import write_page

        context = self._context
        measured_quality(context, self._fitted, self._judged)
        measured_generator(context, self._fitted, self._judged)
        metrics = collect(
            context.folder,
            context.recipe,
            context.teacher,
            self.ready_student(),
            0 if self._fitted.probes else len(self._fitted.images),
            () if self._fitted.probes else getattr(self._fitted.images, "history", ()),
            command,
        )

        def work(at: Workplace) -> dict[str, Any]:
            text = json.dumps(metrics, indent=2) + "\n"
            (at.aside / METRICS).write_text(text, encoding="utf-8")
            sheet = shown_images(context, self._fitted, self._judged)
            sheet.save(at.aside / CONTACT_SHEET)
            write_page(at.aside / REPORT, metrics, sheet, generator_pictures_of(context.folder))
            return {}

        context.run("report", ["report", metrics], work)
