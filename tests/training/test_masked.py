import numpy as np
import torch
from networks import small_segmenter

from earthgate_geo.training.masked import MaskedImages


def _loss(images, *, seed=0, token=0.0):
    model = small_segmenter()
    torch.manual_seed(1)
    masked = MaskedImages(model)
    torch.nn.init.constant_(masked.token, token)
    return masked.loss(model, images, np.random.default_rng(seed))


def test_hidden_pixels_cannot_be_seen():
    images = torch.rand(1, 3, 64, 64)
    others = images.clone()
    blocks = np.random.default_rng(0).random((2, 2)) < 0.6
    assert blocks.any()
    hidden = torch.from_numpy(blocks.repeat(32, 0).repeat(32, 1))
    others[:, :, hidden] += 0.5  # 2 of the deviations that images are normalised by

    near, far = (_loss(each) for each in (images, others))

    model = small_segmenter()
    torch.manual_seed(1)
    painted = MaskedImages(model)
    maps = model.backbone(torch.where(hidden, painted.token, model.scaled(images)))
    wanted = model.scaled(others)
    image = torch.nn.functional.pixel_shuffle(painted.paint(maps[-1]), 16)
    torch.testing.assert_close(far, (image - wanted).abs()[:, :, hidden].mean())
    assert far != near


def test_what_is_not_hidden_counts_for_nothing_but_is_seen():
    images = torch.rand(1, 3, 64, 64)
    blocks = np.random.default_rng(0).random((2, 2)) < 0.6
    hidden = torch.from_numpy(blocks.repeat(32, 0).repeat(32, 1))
    others = torch.where(hidden, images, images * 0.5)

    assert _loss(images) != _loss(others)


def test_another_draw_hides_other_blocks():
    images = torch.rand(2, 3, 96, 96)

    assert _loss(images, seed=0) == _loss(images, seed=0)
    assert _loss(images, seed=0) != _loss(images, seed=1)


def test_token_decoder_and_backbone_learn_and_the_head_does_not():
    model = small_segmenter().train()
    masked = MaskedImages(model)

    masked.loss(model, torch.rand(2, 3, 64, 64), np.random.default_rng(0)).backward()

    learning = [*masked.parameters(), *model.backbone.parameters()]
    assert all(p.grad is not None and p.grad.any() for p in learning if p.dim() > 1)
    assert all(p.grad is None for p in model.head.parameters())


def test_it_learns_to_paint_what_is_hidden():
    model = small_segmenter().train()
    masked = MaskedImages(model)
    learning = [*masked.parameters(), *model.backbone.parameters()]
    optimizer = torch.optim.AdamW(learning, lr=2e-3)
    images, losses = torch.rand(2, 3, 1, 1).expand(-1, -1, 96, 96), []

    for step in range(40):
        loss = masked.loss(model, images, np.random.default_rng(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert np.mean(losses[-5:]) < 0.5 * losses[0]
