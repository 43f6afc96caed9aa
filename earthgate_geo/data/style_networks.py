"""The pretrained networks of Style Augmentation: one measures styles, one puts them on images."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.inception import BasicConv2d, InceptionA, InceptionB, InceptionC

from earthgate_geo.errors import InputError, ModelFileError

EMBEDDED = 100
"""Length of an embedding."""

_PREDICTOR, _TRANSFORMER = "predictor", "transformer"
_ANCHORS = {
    _PREDICTOR: "Conv2d_1a_3x3.conv.weight",
    _TRANSFORMER: "layers.0.conv.weight",
}
"""A tensor of either file: what stands before its name stands before all."""


class PublishedStyle(nn.Module):
    """Style as the networks of Style Augmentation see it; frozen, three bands.

    Source:
        Jackson et al. 2019, "Style Augmentation", arXiv:1809.05375, with the networks of Ghiasi et
        al. 2017, arXiv:1705.06830; CrossEarth, arXiv:2410.22629, uses both. The layers, the names
        of their tensors and the scaling of the input are those of the published code, without
        which its files mean nothing; the inner Inception blocks are torchvision's. Images whose
        sides are no multiples of 4 come back a little larger there; here they keep their size.

    Args:
        weights: Tensors by name, as ``networks`` returns.

    Raises:
        ModelFileError: One is missing or of another shape.
    """

    kind: Literal["published"] = "published"
    least_px: int = 75

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.predictor, self.transformer = _Predictor(), _Transformer()
        _load(self, weights)
        self.requires_grad_(requires_grad=False).eval()

    @classmethod
    def of_files(
        cls, predictor: Mapping[str, Tensor], transformer: Mapping[str, Tensor]
    ) -> "PublishedStyle":
        """Take the tensors of the published files.

        Args:
            predictor: Tensors of ``checkpoint_stylepredictor.pth`` by name.
            transformer: Tensors of ``checkpoint_transformer.pth`` by name.

        Raises:
            ModelFileError: One is missing or of another shape.
        """
        given = {_PREDICTOR: predictor, _TRANSFORMER: transformer}
        return cls(
            {
                f"{part}.{name}": tensor
                for part, tensors in given.items()
                for name, tensor in _bare(tensors, _ANCHORS[part]).items()
            }
        )

    def networks(self) -> dict[str, Tensor]:
        """Return the weights by name."""
        return {name: each for name, each in self.state_dict().items() if not _counts(name)}

    def train(self, mode: bool = True) -> "PublishedStyle":  # noqa: FBT001, FBT002 - torch's own
        """Stay as it is: the networks are frozen."""
        del mode
        super().train(mode=False)
        return self

    def embed(self, images: Tensor) -> Tensor:
        """Measure styles: images (batch, 3, row, col) in 0..1, 75 px or more -> (batch, 100).

        Raises:
            InputError: The images have other than three bands, or fewer pixels.
        """
        rows, cols = images.shape[2:]
        if min(rows, cols) < self.least_px:
            raise InputError(
                found=f"images of {rows} x {cols} px for the published style networks",
                expected=f"{self.least_px} px or more",
            )
        if images.shape[1] != 3:
            raise InputError(
                found=f"images of {images.shape[1]} bands for the published style networks",
                expected="red, green and blue",
            )
        embedded: Tensor = self.to(images.device).predictor(images)
        return embedded

    def restyle(self, images: Tensor, embeddings: Tensor) -> Tensor:
        """Paint images (batch, 3, row, col) in 0..1 in the styles (batch, 100)."""
        painted: Tensor = self.to(images.device).transformer(images, embeddings)
        return painted[..., : images.shape[2], : images.shape[3]]


class _Predictor(nn.Module):
    """Inception-v3 up to Mixed_6e, averaged over the image."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, kernel_size=3)
        self.Mixed_5b = InceptionA(192, pool_features=32)
        self.Mixed_5c = InceptionA(256, pool_features=64)
        self.Mixed_5d = InceptionA(288, pool_features=64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(768, channels_7x7=128)
        self.Mixed_6c = InceptionC(768, channels_7x7=160)
        self.Mixed_6d = InceptionC(768, channels_7x7=160)
        self.Mixed_6e = InceptionC(768, channels_7x7=192)
        self.fc = nn.Linear(768, EMBEDDED)

    def forward(self, images: Tensor) -> Tensor:
        # 0..1 becomes -1..1, but for blue: the networks were published with a slip in its
        # deviation (0.255 for 0.225), and their embeddings are what it makes of them.
        slip = 0.225 / 0.255
        scale = images.new_tensor([2, 2, 2 * slip])[:, None, None]
        shift = images.new_tensor([-1, -1, 0.406 * 2 * (1 - slip) - 1])[:, None, None]
        maps = images * scale + shift
        for name, layer in self.named_children():
            if name == "fc":
                break
            maps = layer(maps)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                maps = functional.max_pool2d(maps, kernel_size=3, stride=2)
        embedded: Tensor = self.fc(maps.mean((2, 3)))
        return embedded


class _Transformer(nn.Module):
    """Ghiasi's network: convolutions whose instance norms take scale and shift from the style."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                _Convolution(3, 32, side=9),
                _Convolution(32, 64, side=3, stride=2),
                _Convolution(64, 128, side=3, stride=2),
                *(_Residual(128) for _ in range(5)),
                _Styled(128, 64, side=3, enlarge=2),
                _Styled(64, 32, side=3, enlarge=2),
                _Styled(32, 3, side=9),
            ]
        )

    def forward(self, images: Tensor, styles: Tensor) -> Tensor:
        for layer in self.layers[:3]:
            images = layer(images)
        for layer in self.layers[3:-1]:
            images = layer(images, styles)
        painted: Tensor = self.layers[-1](images, styles)
        return painted.sigmoid()


class _Convolution(nn.Module):
    def __init__(self, channels: int, out: int, *, side: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, side, stride)

    def forward(self, maps: Tensor) -> Tensor:
        return functional.instance_norm(_mirrored(self.conv, maps)).relu()


class _Styled(nn.Module):
    """Enlarge, convolve, norm by the style; the last one, of three channels, ends there."""

    def __init__(self, channels: int, out: int, *, side: int, enlarge: int = 1) -> None:
        super().__init__()
        self._enlarge = enlarge
        self.conv = nn.Conv2d(channels, out, side)
        self.fc_beta = nn.Linear(EMBEDDED, out)
        self.fc_gamma = nn.Linear(EMBEDDED, out)

    def forward(self, maps: Tensor, styles: Tensor) -> Tensor:
        if self._enlarge == 1:
            return self._normed(maps, styles)
        return self._normed(functional.interpolate(maps, scale_factor=self._enlarge), styles).relu()

    def _normed(self, maps: Tensor, styles: Tensor) -> Tensor:
        return _norm(_mirrored(self.conv, maps), self.fc_gamma(styles), self.fc_beta(styles))


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3)
        self.fc_beta1 = nn.Linear(EMBEDDED, channels)
        self.fc_gamma1 = nn.Linear(EMBEDDED, channels)
        self.fc_beta2 = nn.Linear(EMBEDDED, channels)
        self.fc_gamma2 = nn.Linear(EMBEDDED, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3)

    def forward(self, maps: Tensor, styles: Tensor) -> Tensor:
        inner = _mirrored(self.conv1, maps)
        inner = _norm(inner, self.fc_gamma1(styles), self.fc_beta1(styles)).relu()
        inner = _mirrored(self.conv2, inner)
        return maps + _norm(inner, self.fc_gamma2(styles), self.fc_beta2(styles))


def _mirrored(convolution: nn.Conv2d, maps: Tensor) -> Tensor:
    """Convolve, past the edge with the mirror image."""
    reach = convolution.kernel_size[0] // 2
    convolved: Tensor = convolution(functional.pad(maps, (reach,) * 4, mode="reflect"))
    return convolved


def _norm(maps: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return gamma[..., None, None] * functional.instance_norm(maps) + beta[..., None, None]


def _bare(tensors: Mapping[str, Tensor], anchor: str) -> dict[str, Tensor]:
    """Take off what stands before every name, such as ``state_dict_ghiasi.``."""
    before = next((name.removesuffix(anchor) for name in tensors if name.endswith(anchor)), "")
    return {
        name.removeprefix(before): tensor
        for name, tensor in tensors.items()
        if name.startswith(before)
    }


def _counts(name: str) -> bool:
    """Tell whether a tensor only counts batches: older files lack it, and nothing reads it."""
    return name.endswith("num_batches_tracked")


def _load(networks: PublishedStyle, weights: Mapping[str, Tensor]) -> None:
    """Load what is needed; the published files hold more, which their own code ignores."""
    state: dict[str, Any] = {}
    for name, own in networks.state_dict().items():
        if _counts(name):
            continue
        given = weights.get(name)
        if given is None or given.shape != own.shape:
            found = "is missing" if given is None else f"is {tuple(given.shape)}"
            raise ModelFileError(
                found=f"{name} of the style networks {found}",
                expected=f"a tensor of {tuple(own.shape)}",
                fix="Give the files that Style Augmentation published",
            )
        state[name] = given
    networks.load_state_dict(state, strict=False)
