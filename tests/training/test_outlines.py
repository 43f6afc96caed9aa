import pytest
import torch

from earthgate_geo.training.outlines import restrain

ROOF, GROUND, GRASS = range(3)
SIDE = 96


def _scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Return tiles (2, 3, row, col) of bright roofs on rough ground, and where the roofs are."""
    generator = torch.Generator().manual_seed(0)
    roofs = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    roofs[:, 20:50, 20:50] = True
    roofs[:, 60:80, 55:85] = True
    rough = 0.05 * torch.rand(2, 3, SIDE, SIDE, generator=generator)
    return 0.3 + 0.5 * roofs.unsqueeze(1) + rough, roofs


def _logits(roofs: torch.Tensor, *, on: float, near: float, off: float) -> torch.Tensor:
    """Return logits whose roofs are surrounded by a yard that looks a little like them."""
    grown = torch.nn.functional.max_pool2d(roofs.float().unsqueeze(1), 9, 1, 4)[:, 0] > 0
    lead = torch.where(roofs, on, torch.where(grown, near, off))
    return torch.stack([lead, torch.zeros_like(lead), torch.full_like(lead, -9.0)], 1)


VALID = torch.ones(2, SIDE, SIDE, dtype=torch.bool)


def test_a_class_that_spreads_over_its_edges_is_drawn_back_to_them():
    images, roofs = _scene()
    logits = _logits(roofs, on=3.2, near=1.2, off=-2.0)

    (found,) = restrain(logits, images, VALID)

    assert found.index == ROOF
    assert -3.2 < found.offset < -1.2
    assert found.clearer > 2
    logits[:, ROOF] += found.offset
    assert torch.equal(logits.argmax(1) == ROOF, roofs)


def test_a_class_on_its_edges_stays():
    images, roofs = _scene()

    assert restrain(_logits(roofs, on=3.2, near=-1.2, off=-2.0), images, VALID) == []


def test_a_class_is_not_spread_even_onto_clearer_edges():
    images, roofs = _scene()
    core = roofs & (torch.rand(roofs.shape, generator=torch.Generator().manual_seed(1)) < 0.8)
    timid = torch.where(core, 1.0, torch.where(roofs, -0.4, -3.0))
    logits = torch.stack([timid, torch.zeros_like(timid), torch.full_like(timid, -9.0)], 1)

    assert all(found.offset < 0 for found in restrain(logits, images, VALID))
    assert ROOF not in {found.index for found in restrain(logits, images, VALID)}


def test_most_of_a_class_does_not_go():
    images, roofs = _scene()
    small = torch.zeros_like(roofs)
    small[:, 62:78, 57:83] = True  # all that a high bar would leave
    everywhere = torch.where(small & roofs, 9.0, 1.2)
    logits = torch.stack([everywhere, torch.zeros_like(everywhere)], 1)

    assert restrain(logits, images, VALID) == []


@pytest.mark.parametrize("shown", ["nothing valid", "an even image"])
def test_without_outlines_nothing_is_held_back(shown):
    images, roofs = _scene()
    valid = torch.zeros_like(VALID) if shown == "nothing valid" else VALID
    images = torch.full_like(images, 0.5) if shown == "an even image" else images

    assert restrain(_logits(roofs, on=3.2, near=1.2, off=-2.0), images, valid) == []


def test_logits_are_left_as_they_were():
    images, roofs = _scene()
    logits = _logits(roofs, on=3.2, near=1.2, off=-2.0)
    before = logits.clone()

    restrain(logits, images, VALID)

    assert torch.equal(logits, before)
