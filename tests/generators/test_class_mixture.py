"""Labels of one class and of several, against plain counting."""

import torch

from emptyset.generators.class_mixture import ClassMixture, SingleClasses, SuperposedClasses


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_soft_labels_add_the_shares_of_a_class_that_appears_twice() -> None:
    mixture = ClassMixture(
        torch.tensor([[1, 3, 1], [0, 2, 4]]), torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.6, 0.3]])
    )
    expected = torch.tensor([[0, 0.5, 0, 0.5, 0], [0.1, 0, 0.6, 0, 0.3]])
    torch.testing.assert_close(mixture.soft(5), expected)


def test_one_class_is_a_mixture_of_one() -> None:
    mixture = SingleClasses(7).draw(seeded(), 500)
    assert mixture.classes.shape == (500, 1)
    assert mixture.shares.eq(1).all()
    counts = mixture.classes.flatten().bincount(minlength=7)
    # 500 / 7 = 71; five standard deviations of a binomial are 39.
    assert counts.min() > 32
    assert counts.max() < 111


def test_superposed_shares_are_the_softmax_of_gaussians() -> None:
    mixture = SuperposedClasses(9, 4, superposed_share=1.0).draw(seeded(), 4000)
    assert mixture.classes.shape == (4000, 4)
    torch.testing.assert_close(mixture.shares.sum(dim=1), torch.ones(4000))
    # The logarithm of a ratio of two shares is the difference of two normal numbers.
    ratio = (mixture.shares[:, 0] / mixture.shares[:, 1]).log()
    assert abs(float(ratio.mean())) < 0.1
    assert abs(float(ratio.std()) - 2**0.5) < 0.1


def test_so_many_batches_are_superposed_as_the_share_says() -> None:
    random, sampler = seeded(), SuperposedClasses(5, 3, superposed_share=0.4)
    widths = [sampler.draw(random, 2).classes.shape[1] for _ in range(1000)]
    assert set(widths) == {1, 3}
    # Five standard deviations of a binomial: 0.08.
    assert abs(widths.count(3) / 1000 - 0.4) < 0.08


def test_chance_can_be_overruled_without_changing_what_follows() -> None:
    sampler = SuperposedClasses(5, 3, superposed_share=0.0)
    random = seeded()
    assert sampler.draw(random, 4, superposed=True).classes.shape == (4, 3)
    assert sampler.draw(random, 4).classes.shape == (4, 1)


def test_with_replacement_more_classes_than_there_are_can_be_superposed() -> None:
    mixture = SuperposedClasses(2, 6, superposed_share=1.0).draw(seeded(), 11)
    assert mixture.classes.shape == (11, 6)
    torch.testing.assert_close(mixture.soft(2).sum(dim=1), torch.ones(11))


def test_without_replacement_no_class_appears_twice() -> None:
    sampler = SuperposedClasses(6, 4, superposed_share=1.0, replacement=False)
    classes = sampler.draw(seeded(), 300).classes
    assert all(len(set(row)) == 4 for row in classes.tolist())
    assert classes.unique().tolist() == list(range(6))
