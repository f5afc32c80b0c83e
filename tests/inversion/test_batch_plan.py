"""Batches of one size that give exactly the count."""

import pytest

from emptyset.errors import ImagesError
from emptyset.inversion.batch_plan import plan_batches, require_count


@pytest.mark.parametrize("count", range(1, 24))
@pytest.mark.parametrize("largest", [1, 4, 7, 100])
def test_the_shares_of_the_batches_add_up_to_the_count(count: int, largest: int) -> None:
    plan = plan_batches(count, largest, seed=0)
    shares = [plan.kept_of(batch) for batch in range(plan.batches)]
    assert sum(shares) == count
    assert max(shares) <= plan.size <= largest
    # At most one image of a batch is made in vain.
    assert min(shares) >= plan.size - 1


def test_a_single_image_gets_company_where_that_is_allowed() -> None:
    # The statistics of a batch say nothing of one image.
    assert plan_batches(1, 4, seed=0).size == 2
    assert plan_batches(1, 4, seed=0).kept_of(0) == 1
    assert plan_batches(3, 1, seed=0).size == 1


def test_every_batch_has_its_own_seed_from_the_runs() -> None:
    a, again, other = (plan_batches(9, 2, seed=s).seeds for s in (0, 0, 1))
    assert a == again
    assert len({*a, *other}) == 10


def test_a_count_too_small_is_refused() -> None:
    require_count("zeroq", 2)
    with pytest.raises(ImagesError, match="zeroq: at least 2 images are needed, 1 asked for"):
        require_count("zeroq", 1)
