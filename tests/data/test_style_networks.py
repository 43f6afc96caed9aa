import pytest
import torch
from style_images import smooth_noise
from torch import nn
from torchvision.models.inception import Inception3

from earthgate_geo.checkpoint_file import read_checkpoint
from earthgate_geo.data.style import build_bank
from earthgate_geo.data.style_networks import PublishedStyle
from earthgate_geo.errors import InputError, ModelFileError
from earthgate_geo.style_file import load_bank, save_bank

CHANNELS = {0: (3, 32, 9), 1: (32, 64, 3), 2: (64, 128, 3), 8: (128, 64, 3), 9: (64, 32, 3)}
CHANNELS |= {10: (32, 3, 9)}


def shaped(*shape):
    return torch.randn(shape) * 0.05


def linear(name, out, *, channels=100):
    return {f"{name}.weight": shaped(out, channels), f"{name}.bias": shaped(out)}


def convolution(name, channels, out, side):
    return {f"{name}.weight": shaped(out, channels, side, side), f"{name}.bias": shaped(out)}


@pytest.fixture(scope="module")
def inception():
    torch.manual_seed(0)
    network = Inception3(aux_logits=False, transform_input=True, init_weights=False).eval()
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    return network


@pytest.fixture(scope="module")
def predictor(inception):
    """The tensors of the file by name, with one of a deeper layer, as its own code ignores."""
    shallow = {
        k: v for k, v in inception.state_dict().items() if not k.startswith(("Mixed_7", "fc"))
    }
    return (
        shallow | linear("fc", 100, channels=768) | {"Mixed_7a.branch3x3_1.conv.weight": shaped(1)}
    )


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(1)
    tensors = {}
    for index, sizes in CHANNELS.items():
        tensors |= convolution(f"layers.{index}.conv", *sizes)
    for index in (8, 9, 10):
        for part in ("fc_beta", "fc_gamma"):
            tensors |= linear(f"layers.{index}.{part}", CHANNELS[index][1])
    for index in range(3, 8):
        for number in (1, 2):
            tensors |= convolution(f"layers.{index}.conv{number}", 128, 128, 3)
            for part in ("fc_beta", "fc_gamma"):
                tensors |= linear(f"layers.{index}.{part}{number}", 128)
    return tensors


@pytest.fixture(scope="module")
def style(predictor, transformer):
    return PublishedStyle.of_files(predictor, transformer)


def described(images, embeddings, tensors):
    """Paint as the paper and the published code describe it, layer by layer."""

    def conv(maps, name, *, stride=1):
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        maps = nn.ReflectionPad2d(weight.shape[-1] // 2)(maps)
        return nn.InstanceNorm2d(len(bias))(torch.conv2d(maps, weight, bias, stride))

    def styled(maps, prefix, number=""):
        scale, shift = (
            embeddings @ tensors[f"{prefix}.{part}{number}.weight"].T
            + tensors[f"{prefix}.{part}{number}.bias"]
            for part in ("fc_gamma", "fc_beta")
        )
        return maps * scale[:, :, None, None] + shift[:, :, None, None]

    maps = images
    for index, stride in ((0, 1), (1, 2), (2, 2)):
        maps = conv(maps, f"layers.{index}.conv", stride=stride).relu()
    for index in range(3, 8):
        prefix = f"layers.{index}"
        inner = styled(conv(maps, f"{prefix}.conv1"), prefix, 1).relu()
        maps = maps + styled(conv(inner, f"{prefix}.conv2"), prefix, 2)
    for index in (8, 9):
        larger = nn.UpsamplingNearest2d(scale_factor=2)(maps)
        maps = styled(conv(larger, f"layers.{index}.conv"), f"layers.{index}").relu()
    return torch.sigmoid(styled(conv(maps, "layers.10.conv"), "layers.10"))


def test_an_embedding_is_the_mean_of_inceptions_features_in_a_hundred_numbers(
    style, inception, predictor
):
    images = torch.rand(2, 3, 96, 80)
    seen = []
    hook = inception.Mixed_6e.register_forward_hook(lambda *call: seen.append(call[2]))
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.255])
    imagenet = (images - mean[:, None, None]) / deviation[:, None, None]
    with torch.no_grad():
        inception(imagenet)
    hook.remove()

    embedded = style.embed(images)

    wanted = seen[0].mean((2, 3)) @ predictor["fc.weight"].T + predictor["fc.bias"]
    torch.testing.assert_close(embedded, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("rows", "cols"), [(32, 40), (33, 38)])
def test_the_network_paints_as_described_and_keeps_the_size(style, transformer, rows, cols):
    images, embeddings = torch.rand(2, 3, rows, cols), torch.randn(2, 100)

    painted = style.restyle(images, embeddings)

    wanted = described(images, embeddings, transformer)[..., :rows, :cols]
    assert painted.shape == images.shape
    torch.testing.assert_close(painted, wanted, atol=1e-5, rtol=1e-4)


def test_the_published_files_are_read_whatever_stands_before_their_names(
    style, predictor, transformer, tmp_path
):
    counted = {k: v for k, v in predictor.items() if not k.endswith("num_batches_tracked")}
    torch.save({"state_dict_stylepredictor": counted}, tmp_path / "predictor.pth")
    torch.save({"epoch": 3, "state_dict_ghiasi": transformer}, tmp_path / "transformer.pth")

    again = PublishedStyle.of_files(
        read_checkpoint(tmp_path / "predictor.pth"), read_checkpoint(tmp_path / "transformer.pth")
    )

    assert again.networks().keys() == style.networks().keys()
    assert all(torch.equal(again.networks()[name], own) for name, own in style.networks().items())


def test_a_missing_tensor_and_one_of_another_shape_are_named(predictor, transformer):
    name = "layers.4.fc_beta2.weight"
    sentences = []

    for given in ({k: v for k, v in transformer.items() if k != name},
                  transformer | {name: torch.zeros(128, 64)}):  # fmt: skip
        with pytest.raises(ModelFileError) as refused:
            PublishedStyle.of_files(predictor, given)
        sentences.append(str(refused.value))

    rest = "expected a tensor of (128, 100). Give the files that Style Augmentation published."
    assert sentences == [
        f"transformer.{name} of the style networks is missing; {rest}",
        f"transformer.{name} of the style networks is (128, 64); {rest}",
    ]


def test_a_bank_of_published_styles_brings_its_networks_along(style, tmp_path):
    images = smooth_noise(2, side_px=80)
    bank = build_bank(style, images)

    save_bank(bank, tmp_path / "styles.safetensors")

    again, batch = load_bank(tmp_path / "styles.safetensors"), torch.stack(images)
    assert (again.kind, again.bands, again.mean.shape) == ("published", 3, (100,))
    assert torch.equal(again.style().embed(batch), style.embed(batch))
    assert torch.equal(
        again.style().restyle(batch, again.mean.float().expand(2, -1)),
        style.restyle(batch, bank.mean.float().expand(2, -1)),
    )


def test_the_networks_stay_frozen(style):
    style.train()

    assert not style.predictor.training
    assert not any(parameter.requires_grad for parameter in style.parameters())


def test_other_bands_than_three_are_refused(style):
    with pytest.raises(InputError) as refused:
        style.embed(torch.rand(1, 4, 80, 80))

    assert str(refused.value) == (
        "images of 4 bands for the published style networks; expected red, green and blue."
    )


def test_images_that_the_network_would_shrink_to_nothing_are_refused(style):
    with pytest.raises(InputError) as refused:
        style.embed(torch.rand(1, 3, 80, 74))

    assert style.embed(torch.rand(1, 3, 75, 75)).isfinite().all()
    assert str(refused.value) == (
        "images of 80 x 74 px for the published style networks; expected 75 px or more."
    )
