"""Which shapes of pictures there are, who is trained in which, and that the order is fair and always the same."""

from collections import Counter

import pytest
from finetune_api.dataset import BucketsSpec
from finetune_trainer.data.buckets import BucketOrder, bucket_shapes, nearest
from finetune_trainer.data.draw import Purpose, choose
from finetune_trainer.errors import ConfigurationError
from hypothesis import given, settings
from hypothesis import strategies as st

FIXED = settings(deadline=None, derandomize=True)


def spec(low: int, high: int, step: int) -> BucketsSpec:
    return BucketsSpec.model_validate({"minResolution": low, "maxResolution": high, "step": step})


def test_shapes_of_the_defaults_at_512() -> None:
    tall = [(512, 512), (576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (896, 256), (960, 256), (1024, 256)]
    expected = sorted({*tall, *((width, height) for height, width in tall), (448, 576), (384, 640)})
    assert list(bucket_shapes(BucketsSpec(), 512)) == expected


@given(
    st.integers(8, 256).map(lambda n: n * 8), st.integers(8, 200), st.integers(0, 300), st.integers(1, 32), st.data()
)
@FIXED
def test_shapes_keep_to_the_limits(resolution: int, low: int, more: int, step: int, data: st.DataObject) -> None:
    limits = spec(low * 8, (low + more) * 8, step * 8)
    try:
        shapes = bucket_shapes(limits, resolution)
    except ConfigurationError:
        return
    for height, width in shapes:
        assert height % limits.step == width % limits.step == 0
        assert limits.min_resolution <= min(height, width) <= max(height, width) <= limits.max_resolution
        assert height * width <= resolution**2
        assert (width, height) in shapes
    height, width = data.draw(st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
    assert nearest(shapes, width, height) in (nearest(shapes, height, width)[::-1], nearest(shapes, height, width))


# size of a picture (height, width), its shape
NEAREST = [
    ((1000, 1000), (512, 512)),
    ((10, 10), (512, 512)),
    ((4000, 3000), (576, 448)),
    ((3000, 4000), (448, 576)),
    ((1920, 1080), (640, 384)),
    ((100, 5000), (256, 1024)),
    ((768, 320), (768, 320)),
]


@pytest.mark.parametrize(("size", "shape"), NEAREST)
def test_pictures_go_to_the_nearest_aspect(size: tuple[int, int], shape: tuple[int, int]) -> None:
    assert nearest(bucket_shapes(BucketsSpec(), 512), *size) == shape


def test_limits_that_no_shape_meets_are_the_users_to_change() -> None:
    with pytest.raises(ConfigurationError, match=r"dataset\.buckets: .* from 1024 to 2048 .*lower minResolution"):
        bucket_shapes(spec(1024, 2048, 64), 512)


BUCKETS = st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any)


def numbered(sizes: list[int]) -> list[list[int]]:
    """Items 0, 1, 2 … dealt to buckets of these sizes."""
    return [list(range(sum(sizes[:i]), sum(sizes[: i + 1]))) for i in range(len(sizes))]


@given(st.integers(0, 2**31 - 1), BUCKETS, st.integers(1, 7), st.integers(1, 12))
@FIXED
def test_every_picture_is_seen_equally_often_up_to_one_batch(
    seed: int, sizes: list[int], batch_size: int, epochs: int
) -> None:
    order, buckets = BucketOrder(seed, numbered(sizes), batch_size), [b for b in numbered(sizes) if b]
    count = sum(epochs * len(bucket) // batch_size for bucket in buckets)
    batches = [order.batch(number) for number in range(count)]
    seen = Counter(item for batch in batches for item in batch)
    for batch in batches:
        assert len(batch) == batch_size
        assert sum(not set(batch).isdisjoint(bucket) for bucket in buckets) == 1, "no batch spans buckets"
    for bucket in buckets:
        assert epochs * len(bucket) - batch_size < sum(seen[item] for item in bucket) <= epochs * len(bucket)
        assert max(seen[item] for item in bucket) - min(seen[item] for item in bucket) <= 1


@given(st.integers(0, 2**31 - 1), BUCKETS, st.integers(1, 5), st.permutations(range(20)))
@FIXED
def test_the_order_does_not_depend_on_what_was_asked_before(
    seed: int, sizes: list[int], batch_size: int, asked: list[int]
) -> None:
    forwards = BucketOrder(seed, numbered(sizes), batch_size)
    in_order = [forwards.batch(number) for number in range(20)]
    for number in asked:
        assert BucketOrder(seed, numbered(sizes), batch_size).batch(number) == in_order[number]


@given(st.integers(0, 2**31 - 1), st.integers(1, 9), st.integers(1, 5), st.integers(0, 10**6))
@FIXED
def test_a_single_bucket_is_the_plain_order(seed: int, count: int, batch_size: int, number: int) -> None:
    plain = [choose(seed, Purpose.INSTANCE, number * batch_size + i, count) for i in range(batch_size)]
    assert BucketOrder(seed, [[], list(range(count))], batch_size).batch(number) == plain


def test_passes_mix_the_buckets_and_differ() -> None:
    order = BucketOrder(3, numbered([6, 6, 6]), 1)
    passes = [tuple(order.batch(18 * epoch + i)[0] // 6 for i in range(18)) for epoch in range(5)]
    assert len(set(passes)) == 5
    assert all(sorted(one) == [0] * 6 + [1] * 6 + [2] * 6 for one in passes)
