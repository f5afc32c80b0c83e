"""Every setting of every source changes what the source computes."""

from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from typing import Any

import pytest
import torch
from counting_teacher import BATCH, CountingNet, student_of, teacher_of
from small_teachers import stages_of
from torch import nn

from emptyset.images.image_set import Batch
from emptyset.images.image_source import Disagreement
from emptyset.registry import sources
from emptyset.teachers.teacher import Teacher

LESSONS = 4

# Values that no source's smallest settings have; each is tried alone.
OTHER: dict[str, tuple[Any, ...]] = {
    "activation_weight": (0.7,),
    "backbone": ("imagenet",),
    "base": ("zaq", "autorecon"),
    "cells": ("resnet18",),
    "centre_batch": (2,),
    "centre_label_weight": (0.5,),
    "centre_learning_rate": (0.1,),
    "centre_minimum_rate": (0.3,),
    "centre_patience": (4,),
    "centre_steps": (3,),
    "centre_weight": (0.7,),
    "centres": ("all",),
    "class_similarity_weight": (3.0,),
    "deep_weight": (0.3,),
    "difference_weight": (0.9,),
    "embedding_spread": (3.0,),
    "embedding_width": (9,),
    "embeddings": ("frozen", "random"),
    "entropy_high": (0.35,),
    "entropy_low": (0.6,),
    "label_weight": (0.6,),
    "latent": (8,),
    "learning_rate": (1e-2,),
    "legacy": (True,),
    "mapped": (8,),
    "mapping": (False,),
    "margin_weight": (0.3,),
    "milestones": ((0.5,),),
    "momentum": ((0.3, 0.999), (0.5, 0.9)),
    "noise": ("per_slot",),
    "relation_weight": (0.3,),
    "replacement": (False,),
    "shallow_weight": (0.9,),
    "similarity_weight": (2.0,),
    "statistics_weight": (0.7,),
    "student_steps": (3,),
    "sum_weight": (0.9,),
    "superposed_classes": (4,),
    "superposed_norm": ("mean",),
    "superposed_share": (1.0,),
    "texture_dominant": (3,),
    "texture_highest": (0.05,),
    "texture_lowest": (0.1,),
    "texture_weight": (4.0,),
    "width": (5,),
    "widths": ((7, 4), (5, 3)),
}

# Some settings count only beside others than the smallest.
TAKING_TURNS = {"student_steps": 1}
ON_GDFQ: dict[str, Any] = {}
ON_ZAQ = {"base": "zaq", **TAKING_TURNS}
ON_AUTORECON = {"base": "autorecon"}
STANDING_STILL = {"centre_steps": 7, "centre_learning_rate": 9.0, "centre_patience": 1}
OUT_OF_BOUNDS = {"texture_lowest": 0.2}
BESIDE: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("qimera", "base"): [ON_GDFQ],
    ("qimera", "backbone"): [ON_GDFQ],
    ("qimera", "cells"): [ON_AUTORECON],
    ("qimera", "width"): [ON_AUTORECON],
    ("qimera", "statistics_weight"): [ON_GDFQ, ON_AUTORECON],
    ("qimera", "relation_weight"): [ON_ZAQ],
    ("qimera", "activation_weight"): [ON_ZAQ],
    ("qimera", "student_steps"): [ON_ZAQ],
    ("qimera", "embedding_width"): [{"embeddings": "random"}],
    ("qimera", "superposed_norm"): [{"backbone": "imagenet"}],
    ("texq", "centre_patience"): [STANDING_STILL],
    ("texq", "centre_minimum_rate"): [STANDING_STILL],
    ("texq", "texture_dominant"): [OUT_OF_BOUNDS],
    ("texq", "texture_weight"): [OUT_OF_BOUNDS],
}
BESIDE_ALL = {"qimera": [ON_GDFQ, ON_ZAQ], "zaq": [TAKING_TURNS]}

NO_LABELS = "its images have no labels, so other values are refused"
EXCEPTIONS = {
    ("zaq", "label_weight"): NO_LABELS,
    ("zaq", "class_similarity_weight"): NO_LABELS,
}


def cases() -> Iterator[Any]:
    for entry in sources.entries():
        for setting in (field.name for field in fields(entry.config)):
            if (entry.name, setting) in EXCEPTIONS:
                continue
            everywhere = BESIDE_ALL.get(entry.name, [{}])
            for beside in BESIDE.get((entry.name, setting), everywhere):
                for value in OTHER.get(setting, ()):
                    named = [entry.name, *map(str, beside.values()), f"{setting}={value}"]
                    yield pytest.param(entry.name, beside, setting, value, id="-".join(named))


@cache
def both_networks() -> tuple[Teacher, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        teacher = teacher_of(CountingNet())
    return teacher, student_of(teacher)


def values_of(batch: Batch) -> tuple[bytes, Any]:
    targets = None if batch.targets is None else batch.targets.tolist()
    return batch.images.detach().numpy().tobytes(), targets


def computed(name: str, settings: dict[str, Any]) -> list[tuple[Any, ...]]:
    """All that a student is given in a short training, and what is drawn after it."""
    entry, (teacher, student) = sources.get(name), both_networks()
    source = entry.make(replace(entry.config.smallest(), **settings)).source(teacher, seed=3)
    source.begin(LESSONS, BATCH, precision="float32")
    given: list[tuple[Any, ...]] = []
    for _ in range(LESSONS):
        lesson = source.next_batch(BATCH)
        given.append((lesson.student_learns, lesson.source_learns, *values_of(lesson)))
        if lesson.source_learns:
            theirs, their_maps = stages_of(teacher.module, lesson.images)
            ours, our_maps = stages_of(student, lesson.images)
            source.learn_from(Disagreement(lesson, theirs, ours, their_maps, our_maps))
    assert source.fault() is None
    (drawn,) = source.drawn(2 * BATCH, seed=5).batches(2 * BATCH)
    return [*given, values_of(drawn)]


@cache
def computed_before(name: str, settings: tuple[tuple[str, Any], ...]) -> list[tuple[Any, ...]]:
    return computed(name, dict(settings))


def test_every_setting_is_tried_with_another_value_or_refuses_it() -> None:
    named = {field.name for entry in sources.entries() for field in fields(entry.config)}
    assert named == set(OTHER)
    for name, setting in EXCEPTIONS:
        with pytest.raises(ValueError, match=f"'{setting}' needs labels"):
            replace(sources.get(name).config.smallest(), **{setting: OTHER[setting][0]})


@pytest.mark.parametrize("name", sources.names())
def test_the_same_settings_compute_the_same(name: str) -> None:
    for settings in BESIDE_ALL.get(name, [{}]):
        assert computed(name, settings) == computed_before(name, tuple(settings.items()))


@pytest.mark.parametrize(("name", "beside", "setting", "value"), list(cases()))
def test_each_setting_alone_changes_what_is_computed(
    name: str, beside: dict[str, Any], setting: str, value: Any
) -> None:
    before = computed_before(name, tuple(beside.items()))
    assert computed(name, beside | {setting: value}) != before
