import numpy as np
import pytest
import torch
from networks import small_segmenter

from earthgate_geo.metrics import UNKNOWN
from earthgate_geo.recipe import Dacs
from earthgate_geo.training.loop import fast_arithmetic
from earthgate_geo.training.teacher import Teacher

VALID = torch.ones(2, 32, 32, dtype=torch.bool)


def _images(seed=0):
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def _taught(**dacs):
    model = small_segmenter()
    parameters = {k: v for k, v in model.named_parameters() if k.startswith("head.")}
    return model, Teacher(model, parameters, Dacs(**dacs))


def _shift(model, by):
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(by)


def test_the_first_update_copies_the_student_and_later_ones_follow_the_published_weights():
    model, teacher = _taught(momentum=0.6)
    bias = model.head.classify[-1].bias
    past = torch.full_like(bias, float("nan"))

    for step in range(6):
        _shift(model, 1 + step)
        weight = min(1 - 1 / (step + 1), 0.6)
        student = bias.detach().clone()
        past = student if step == 0 else weight * past + (1 - weight) * student
        teacher.follow()

        average = teacher.state()["average"]["values"]["head.classify.3.bias"]
        torch.testing.assert_close(average, past)


def test_labelling_leaves_the_student_as_it_is():
    model, teacher = _taught()
    teacher.follow()
    _shift(model, 0.5)
    before = {k: v.clone() for k, v in model.state_dict().items()}

    pseudo = teacher.label(_images(), VALID)

    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not pseudo.weights.requires_grad


def test_labelling_for_a_choice_of_modules_leaves_the_teacher_as_it_is():
    _, teacher = _taught(aligned=True)
    teacher.look(_images(), VALID)
    shares = teacher.state()["align"]["running"].clone()

    teacher.label(_images(3), VALID)

    assert torch.equal(teacher.state()["align"]["running"], shares)


def test_a_teacher_labels_as_the_student_that_it_was_made_from():
    model, teacher = _taught()
    with torch.inference_mode(), fast_arithmetic(torch.device("cpu")):
        wanted = model(_images()).float().softmax(1).argmax(1)
    _shift(model, 10.0)

    assert torch.equal(teacher.label(_images(), VALID).labels, wanted)


def test_labelling_alone_does_not_move_the_shares_that_are_held():
    _, teacher = _taught(aligned=True, weighting="certainty")
    teacher.look(_images(1), VALID)

    first = teacher.label(_images(), VALID)
    again = teacher.label(_images(), VALID)

    assert torch.equal(first.weights, again.weights)


def test_pixels_without_data_are_not_labelled():
    _, teacher = _taught()
    valid = VALID.clone()
    valid[0, :5] = False

    labels = teacher.label(_images(), valid).labels

    assert torch.equal(labels == UNKNOWN, ~valid)


def test_a_pixel_weighs_by_the_published_rule_or_by_certainty():
    _, plain = _taught()
    _, certain = _taught(weighting="certainty")

    certainty = certain.label(_images(), VALID).weights

    assert torch.equal(plain.label(_images(), VALID).weights, torch.ones(2, 32, 32))
    assert (certainty >= 0.2).all()
    assert (certainty <= 1).all()
    assert certainty.std() > 0


def test_every_pixel_of_an_image_weighs_by_its_share_of_sure_pixels():
    _, certain = _taught(weighting="certainty")
    certainty = certain.label(_images(), VALID).weights
    threshold = float(certainty[0].median())
    _, teacher = _taught(weighting="share", threshold=threshold)
    valid = VALID.clone()
    valid[:, :, 16:] = False

    weights = teacher.label(_images(), valid).weights

    for image in (0, 1):
        share = (certainty[image, :, :16] >= threshold).float().mean()
        torch.testing.assert_close(weights[image], share.expand(32, 32))


def test_an_image_without_data_weighs_nothing():
    _, teacher = _taught(weighting="share")

    assert not teacher.label(_images(), ~VALID).weights.any()


def test_source_classes_are_pasted_onto_more_target_images_than_there_are_sources():
    _, teacher = _taught(weighting="share", threshold=1.0)
    images = torch.cat([_images(), _images(1)])
    donors = torch.full((2, 3, 32, 32), 7.0)
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    labels[:, :, 16:] = 3
    batch = {
        "source": (donors, labels),
        "target": images,
        "target_valid": torch.ones(4, 32, 32, dtype=torch.bool),
    }

    mixed, pseudo = teacher.mix(batch, [np.random.default_rng(i) for i in range(4)])

    pasted = (mixed == 7).all(1)
    assert torch.equal(pasted.sum((1, 2)), torch.full((4,), 32 * 16))  # one class of the two
    assert torch.equal(pseudo.labels[pasted], labels.repeat(2, 1, 1)[pasted])
    assert torch.equal(mixed.permute(0, 2, 3, 1)[~pasted], images.permute(0, 2, 3, 1)[~pasted])
    assert (pseudo.weights[pasted] == 1).all()
    assert (pseudo.weights[~pasted] == 0).all()


def test_an_aligned_teacher_must_look_once_and_then_brings_lost_classes_back():
    model, teacher = _taught(aligned=True)
    assert teacher.must_look

    teacher.look(_images(), VALID)
    before = teacher.label(_images(), VALID).labels
    _shift_to_class(model, 1, by=0.3)
    teacher.follow()
    source = (_images(), torch.full(VALID.shape, UNKNOWN))
    batch = {"source": source, "target": _images(), "target_valid": VALID}
    for _ in range(30):
        teacher.mix(batch, [np.random.default_rng(0)] * 2)
    aligned = teacher.label(_images(), VALID).labels

    free = Teacher(model, {}, Dacs())
    lost = free.label(_images(), VALID).labels
    assert not teacher.must_look
    wanted = (before == 1).float().mean()
    assert abs((aligned == 1).float().mean() - wanted) < abs((lost == 1).float().mean() - wanted)


def _mixed(teacher, seed=0):
    nothing = torch.full((2, 32, 32), UNKNOWN)
    batch = {"source": (_images(), nothing), "target": _images(seed), "target_valid": VALID}
    return teacher.mix(batch, [np.random.default_rng(i) for i in (0, 1)])


def _shift_to_class(model, value, *, by):
    with torch.no_grad():
        model.head.classify[-1].bias[value] += by


@pytest.mark.parametrize("aligned", [False, True])
def test_a_restored_teacher_labels_alike(aligned):
    model, teacher = _taught(aligned=aligned, weighting="certainty")
    if aligned:
        teacher.look(_images(1), VALID)
    _shift(model, 0.1)
    teacher.follow()
    _mixed(teacher, seed=2)

    _, other = _taught(aligned=aligned, weighting="certainty")
    other.load_state(teacher.state())

    one, two = (each.label(_images(), VALID) for each in (teacher, other))
    assert torch.equal(one.labels, two.labels)
    assert torch.equal(one.weights, two.weights)
