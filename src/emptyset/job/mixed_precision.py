"""The stage that decides the bits of each layer, and what it decided, for later stages."""

import json
from typing import Any

from emptyset.job.context import RunContext
from emptyset.job.image_stages import KnownImages
from emptyset.recipe import Recipe
from emptyset.run_folder import MIXED_PRECISION, RunFolder, Workplace

STAGE = "mixed_precision"


def decided_overrides(context: RunContext, fitted: KnownImages) -> dict[str, str]:
    """Bits by pattern of layer path, measured on the images that the student is fitted to.

    Empty where the recipe chooses none. What was found is written to ``mixed_precision.json``.
    """
    recipe = context.recipe
    section = recipe.mixed_precision
    if section is None:
        if context.folder.record(STAGE) is not None:
            context.folder.discard("run", STAGE)  # of the recipe that was here before
        return {}
    inputs = [
        STAGE,
        context.teacher_identity(),
        fitted.identity,
        recipe.plan.model_dump(),
        section.model_dump(),
        recipe.seed,
    ]

    def work(at: Workplace) -> dict[str, Any]:
        from emptyset.bit_allocation.mixed_precision import mixed_precision

        plan = recipe.plan
        found = mixed_precision(
            context.teacher,
            fitted.images,
            plan.bits,
            plan=plan.name,
            batch_norm=plan.batch_norm,
            overrides=plan.overrides,
            memory=recipe.memory,
            seed=recipe.seed,
            monitor=at.monitor,
            **section.model_dump(),
            **plan.settings(),
        )
        text = json.dumps(found.to_json(), indent=2) + "\n"
        (at.aside / MIXED_PRECISION).write_text(text, encoding="utf-8")
        return {"overrides": found.overrides}

    return dict(context.run(STAGE, inputs, work)["overrides"])


def refuse_early(context: RunContext) -> None:
    """Refuse a budget that cannot be met before images are made for it."""
    recipe, section = context.recipe, context.recipe.mixed_precision
    made = context.folder.record("images") is not None
    if section is None or recipe.synthesize is None or made:
        return
    from emptyset.bit_allocation.mixed_precision import require_reachable

    plan = recipe.plan
    require_reachable(
        context.teacher,
        plan.bits,
        plan=plan.name,
        batch_norm=plan.batch_norm,
        overrides=plan.overrides,
        **section.model_dump(exclude={"count"}),
        **plan.settings(),
    )


def recorded_overrides(folder: RunFolder, recipe: Recipe) -> dict[str, str]:
    """The same, read back from a run folder; empty where nothing was chosen."""
    record = folder.record(STAGE)
    if recipe.mixed_precision is None or record is None:
        return {}
    return dict(record.result["overrides"])
