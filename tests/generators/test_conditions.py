"""How labels and noise become a latent: the papers' sums, written out one by one."""

import pytest
import torch
from torch import Tensor

from emptyset.generators.class_mixture import ClassMixture, SuperposedClasses
from emptyset.generators.conditions import (
    NoiseAlone,
    ScaledEmbedding,
    SuperposedEmbedding,
    extract_embeddings,
)
from emptyset.generators.generator import labels_in_batches

CLASSES, WIDTH = 5, 6


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(module: torch.nn.Module) -> torch.nn.Module:
    random = seeded(9)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    return module


def mixture_of(count: int, together: int) -> ClassMixture:
    sampler = SuperposedClasses(CLASSES, together, superposed_share=1.0)
    drawn = sampler.draw(seeded(1), count)
    return ClassMixture(drawn.classes, drawn.shares.double())


def latents_of(condition: torch.nn.Module, mixture: ClassMixture) -> tuple[Tensor, Tensor]:
    """The latents, and the noise that is in them."""
    drawn = condition.draw(seeded(4), mixture, mixture.soft(CLASSES))
    drawn = {k: v.double() if v.is_floating_point() else v for k, v in drawn.items()}
    return condition(drawn), drawn["noise"]


def test_noise_alone_is_the_noise() -> None:
    latents, noise = latents_of(NoiseAlone(7), mixture_of(3, 1))
    assert torch.equal(latents, noise)
    assert latents.shape == (3, 7)


def test_gdfq_scales_the_noise_by_the_embedding_of_the_class() -> None:
    condition, mixture = filled(ScaledEmbedding(CLASSES, 7)), mixture_of(3, 1)
    latents, noise = latents_of(condition, mixture)
    for image, label in enumerate(mixture.classes[:, 0].tolist()):
        expected = condition.embedding.weight[label] * noise[image]
        torch.testing.assert_close(latents[image], expected)


@pytest.mark.parametrize("mapped", [None, 4])
def test_qimera_superposes_mapped_embeddings_and_adds_one_noise(mapped: int | None) -> None:
    condition = filled(SuperposedEmbedding(CLASSES, WIDTH, mapped=mapped))
    mixture = mixture_of(3, 8)
    latents, noise = latents_of(condition, mixture)
    assert latents.shape == (3, mapped or WIDTH)
    for image in range(3):
        total = noise[image].clone()
        for label, share in zip(mixture.classes[image], mixture.shares[image], strict=True):
            total = total + share * condition.mapping(condition.embedding.weight[label])
        torch.testing.assert_close(latents[image], total)


@pytest.mark.parametrize("together", [1, 4])
def test_per_slot_noise_is_normalised_with_its_embedding_before_the_mapping(together: int) -> None:
    condition = filled(SuperposedEmbedding(CLASSES, WIDTH, mapped=4, noise="per_slot"))
    mixture = mixture_of(3, together)
    latents, noise = latents_of(condition, mixture)
    assert noise.shape == (3, together, WIDTH)
    slots = torch.stack(
        [
            torch.stack(
                [
                    condition.embedding.weight[mixture.classes[image, k]] + noise[image, k]
                    for k in range(together)
                ]
            )
            for image in range(3)
        ]
    )
    for image in range(3):
        total = torch.zeros(4, dtype=torch.double)
        for k in range(together):
            # One class: this image alone. Several: slot k of the whole batch.
            values = slots[image, k] if together == 1 else slots[:, k]
            spread = (values - values.mean()).square().mean()
            normal = (slots[image, k] - values.mean()) / (spread + 1e-5).sqrt()
            total = total + mixture.shares[image, k] * condition.mapping(normal)
        torch.testing.assert_close(latents[image], total)


@pytest.mark.parametrize("frozen", [True, False])
def test_extracted_embeddings_start_as_the_classifiers_rows(frozen: bool) -> None:
    condition = filled(SuperposedEmbedding(CLASSES, WIDTH, mapped=4))
    rows = torch.randn(CLASSES, WIDTH, generator=seeded(2), dtype=torch.double)
    extract_embeddings(condition, rows, frozen=frozen, spread=None)
    assert torch.equal(condition.embedding.weight, rows)
    assert condition.embedding.weight.requires_grad is not frozen


def test_one_factor_gives_extracted_embeddings_their_spread() -> None:
    condition = filled(SuperposedEmbedding(3, 2, mapped=4))
    # Columns with standard deviations 0.1 and 0.3 around 5 and 1: 0.2 in the mean.
    rows = torch.tensor([[4.9, 0.7], [5.0, 1.0], [5.1, 1.3]], dtype=torch.double)
    extract_embeddings(condition, rows, frozen=True, spread=0.5)
    torch.testing.assert_close(condition.embedding.weight.data, rows * 2.5)


def test_rows_that_do_not_differ_stay_as_they_are() -> None:
    condition = filled(SuperposedEmbedding(3, 2, mapped=4))
    rows = torch.full((3, 2), 0.25, dtype=torch.double)
    extract_embeddings(condition, rows, frozen=True, spread=1.0)
    assert torch.equal(condition.embedding.weight, rows)


@pytest.mark.parametrize(
    ("share", "count", "batches", "superposed"),
    [
        (0.4, 50, 10, 4),
        (0.0, 7, 2, 0),
        (1.0, 20, 4, 4),
        (0.3, 31, 7, 2),
        (0.5, 44, 9, 4),
        (0.9, 56, 12, 11),
    ],
)
def test_superposed_batches_are_spread_evenly_among_the_drawn_ones(
    share: float, count: int, batches: int, superposed: int
) -> None:
    sampler = SuperposedClasses(CLASSES, 3, superposed_share=share)
    labels = list(labels_in_batches(sampler, count, 5, seeded()))
    assert [len(mixture.classes) for mixture in labels] == [5] * batches
    mixed = [mixture.classes.shape[1] == 3 for mixture in labels]
    assert sum(mixed) == superposed
    # Of neighbouring batches, however many, no group has two more of them than another.
    for length in range(1, batches):
        found = [sum(mixed[start : start + length]) for start in range(batches - length + 1)]
        assert max(found) - min(found) <= 1, length
