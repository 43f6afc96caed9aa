import torch
from networks import small_segmenter

from earthgate_geo.models.heads import HeadConfig
from earthgate_geo.models.statistics import FeatureStatistics


def test_batches_count_like_one_image_of_all_their_pixels() -> None:
    model, images = small_segmenter(), torch.rand(4, 3, 64, 64)

    parts = FeatureStatistics.gather(model, torch.split(images, 2))

    scaled = (images - 0.5) / 0.25
    finest = model.backbone(scaled)[0]
    for level, seen in zip((0, 1), (scaled, finest), strict=True):
        torch.testing.assert_close(parts.means[level], seen.mean((0, 2, 3)))
        wanted = seen.std((0, 2, 3), correction=0)
        torch.testing.assert_close(parts.deviations[level], wanted, atol=1e-3, rtol=1e-3)


def test_only_first_layers_count() -> None:
    model = small_segmenter()

    found = FeatureStatistics.gather(model, [torch.rand(1, 3, 64, 64)])

    assert [len(mean) for mean in found.means] == [3, *model.backbone.channels[:2]]


def test_heights_do_not_count() -> None:
    model, images = small_segmenter(), torch.rand(2, 4, 64, 64)
    images[1, 3] = -1

    found = FeatureStatistics.gather(model.with_heights(), [images])

    expected = FeatureStatistics.gather(model, [images[:, :3]])
    torch.testing.assert_close(found.means, expected.means)
    torch.testing.assert_close(found.deviations, expected.deviations)


def test_a_head_that_takes_the_last_maps_alone_changes_nothing() -> None:
    images, of_last = torch.rand(1, 4, 64, 64), HeadConfig(kind="mfnet", width=16)
    model = small_segmenter(heights=True)
    other = small_segmenter(heights=True, head=of_last)
    other.backbone.load_state_dict(model.backbone.state_dict())

    found, expected = (FeatureStatistics.gather(each, [images]) for each in (other, model))

    torch.testing.assert_close(found.means, expected.means)


def test_distances_are_in_squared_deviations() -> None:
    one = FeatureStatistics((torch.tensor([0.0]),), (torch.tensor([2.0]),))
    other = FeatureStatistics((torch.tensor([4.0]),), (torch.tensor([4.0]),))

    assert one.distances(one) == [0.0]
    torch.testing.assert_close(one.distances(other), [5.0], atol=1e-3, rtol=0)


def test_statistics_survive_as_tensors() -> None:
    found = FeatureStatistics.gather(small_segmenter(), [torch.rand(1, 3, 64, 64)])

    again = FeatureStatistics.from_tensors(found.tensors())

    assert again.distances(found) == [0.0, 0.0, 0.0]
