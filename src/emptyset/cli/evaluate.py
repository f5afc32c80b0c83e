"""`emptyset evaluate RUN`: what the file lost, on images of your choice."""

from dataclasses import asdict
from typing import Any

from emptyset.cli.options import ImagesOption, JsonOption, QuietOption, RunPath


def evaluate(
    run: RunPath,
    images: ImagesOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare a run's file with its teacher: agreement, and top-1 and top-5 with labels."""
    from emptyset import pipeline
    from emptyset.cli.output import show_json
    from emptyset.cli.progress import shown_progress
    from emptyset.job.restored import restore
    from emptyset.run_folder import MODEL

    restored = restore(run)
    shown, described = restored.judged_images(images)
    student = restored.student
    # The student keeps the teacher's own weights: no hub and no weights file is needed here.
    with shown_progress(quiet=quiet) as monitor, student.float_mode():
        found = pipeline.measure(
            restored.file(MODEL),
            student,
            shown,
            seed=restored.recipe.seed,
            batch_size=pipeline.batch_size_for(student.teacher.input.shape),
            monitor=monitor,
        )
    result = {"on": described, "count": len(shown)} | found.to_json()
    if as_json:
        show_json(result)
    else:
        _show(found, described)


def _show(found: Any, described: str) -> None:
    from emptyset.report.facts import percent

    agreed = asdict(found.agreement)
    print(f"on         {agreed['count']} images: {described}")
    if found.teacher is not None and found.quantized is not None:
        print(
            f"float      top-1 {percent(found.teacher.top1)}, top-5 {percent(found.teacher.top5)}"
        )
        print(
            f"quantized  top-1 {percent(found.quantized.top1)}, "
            f"top-5 {percent(found.quantized.top5)}"
        )
    print(
        f"agreement  {percent(agreed['share'])} "
        f"({percent(agreed['low'])} to {percent(agreed['high'])}), KL {agreed['kl']:.4g} nats"
    )
