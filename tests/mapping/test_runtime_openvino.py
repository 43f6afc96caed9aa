import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import small_segmenter, write_model
from torch import Tensor

from earthgate_geo.errors import ModelFileError
from earthgate_geo.mapping.runtime import RuntimeOptions
from earthgate_geo.mapping.runtime_openvino import OpenVinoRuntime, open_openvino
from earthgate_geo.model_file import LoadedModel, load_model
from earthgate_geo.models.backbone import BackboneConfig, freeze
from earthgate_geo.models.heads import HeadConfig
from earthgate_geo.raster.grid import Size
from earthgate_geo.toolbox.attach import attach, fold
from earthgate_geo.toolbox.base import CROSSMODAL, GATED, Kind, ToolboxConfig

SIZE = Size(64, 96)
FP32 = RuntimeOptions(runtime="openvino", precision="fp32")
SMALL = {"depth": 4, "embed_dim": 64, "num_heads": 2}
TABLE = {"img_size": [64, 64], "patch_size": 16}
NETWORKS: dict[str, tuple[BackboneConfig, str]] = {
    "ours": (BackboneConfig(options={"dim": 64, "depth": 4, "stem": [16, 16, 32]}), "fpn"),
    "plain": (BackboneConfig(name="vit_tiny_patch16_224", options=SMALL | TABLE), "linear"),
    "dinov2": (
        BackboneConfig(name="vit_small_patch14_reg4_dinov2", options=SMALL | TABLE),
        "fpn",
    ),
    "dinov3": (BackboneConfig(name="vit_small_patch16_dinov3", options=SMALL), "mask2former"),
    "sam": (
        BackboneConfig(
            name="samvit_base_patch16",
            options=SMALL | {"img_size": 64, "global_attn_indexes": (1, 3)},
        ),
        "linear",
    ),
}


PLAIN = ToolboxConfig(kinds=(*GATED, Kind.REIN), rank=4, bottleneck=6)


def images_of(seed: int, *, size: Size = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, size.rows, size.cols, generator=generator)


def adapted(
    backbone: BackboneConfig, head: str, *, modules: ToolboxConfig = PLAIN, heights: bool = False
) -> LoadedModel:
    """A model with a used module of every kind in each block, those folded that can be."""
    sizes = HeadConfig(kind=head, width=32, queries=6, pixel_layers=1, decoder_layers=2)
    segmenter = small_segmenter(backbone=backbone, head=sizes, heights=heights)
    freeze(segmenter)
    toolbox = attach(segmenter.backbone, modules)
    toolbox.open(toolbox.slots)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in segmenter.parameters():  # LayerScale starts so small that it would hide
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    toolbox.open(())
    fold(toolbox)
    return LoadedModel(segmenter=segmenter, name="adapted", digest="0", card={}, replay=None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(write_model(tmp_path_factory.mktemp("model") / "model.safetensors"))


@pytest.fixture(scope="module")
def kept(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the model, converted."""
    folder = tmp_path_factory.mktemp("cache")
    open_openvino(model, SIZE, replace(FP32, cache=folder))
    return folder


@pytest.fixture
def cache(kept: Path, tmp_path: Path) -> Path:
    """A cache of one's own that holds the model, converted."""
    return shutil.copytree(kept, tmp_path / "cache")


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """Gives torch its number of threads back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def blank(model: LoadedModel) -> LoadedModel:
    """The same by its digest, but with a network that answers zero."""
    segmenter = small_segmenter()
    with torch.no_grad():
        for parameter in segmenter.head.parameters():
            parameter.zero_()
    return replace(model, segmenter=segmenter)


def answer(runtime: OpenVinoRuntime, images: Tensor) -> Tensor:
    return runtime.start(images)().clone()


@pytest.mark.parametrize("family", NETWORKS)
def test_every_family_head_and_kind_of_module_gives_the_numbers_of_torch(family: str) -> None:
    model, images = adapted(*NETWORKS[family]), images_of(0)

    logits = answer(open_openvino(model, SIZE, FP32), images)

    with torch.inference_mode():
        expected = model.segmenter(images)
    assert (logits - expected).abs().max() < 1e-3 * expected.std()


@pytest.mark.parametrize(
    ("family", "mechanism", "head"),
    [
        *((family, "mmadapter", "fpn") for family in NETWORKS),
        *((family, "mmlora", "fpn") for family in ("dinov3", "sam")),
        *((family, "mmadapter", "mfnet") for family in ("ours", "sam")),
    ],
)
def test_networks_with_heights_give_the_numbers_of_torch(
    family: str, mechanism: str, head: str
) -> None:
    modules = ToolboxConfig(kinds=CROSSMODAL, mechanism=mechanism)
    model = adapted(NETWORKS[family][0], head, modules=modules, heights=True)
    images = torch.cat([images_of(0), images_of(1)[:, :1]], dim=1)
    images[:, 3, :20] = -1
    missing = torch.cat([images[:, :3], torch.full_like(images[:, 3:], -1)], dim=1)

    runtime = open_openvino(model, SIZE, FP32)

    for given in (images, missing):
        with torch.inference_mode():
            expected = model.segmenter(given)
        assert (answer(runtime, given) - expected).abs().max() < 1e-3 * expected.std()
    assert (answer(runtime, images) - answer(runtime, missing)).abs().max() > 1e-2


def test_a_result_lasts_until_as_many_calls_have_started_as_may_be_in_flight(
    model: LoadedModel, kept: Path
) -> None:
    runtime = open_openvino(model, SIZE, replace(FP32, cache=kept))
    expected = [answer(runtime, images_of(seed)) for seed in range(runtime.depth)]
    images = torch.empty(1, 3, SIZE.rows, SIZE.cols)

    waiting = []
    for seed in range(runtime.depth):
        images.copy_(images_of(seed))
        waiting.append(runtime.start(images))

    assert runtime.depth >= 2
    assert all(torch.equal(wait(), logits) for wait, logits in zip(waiting, expected, strict=True))


def test_the_bits_do_not_depend_on_the_number_of_threads(
    model: LoadedModel, kept: Path, torch_threads: None
) -> None:
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(open_openvino(model, SIZE, replace(FP32, cache=kept)))

    assert [runtime.depth for runtime in found] == [2, 3]
    assert torch.equal(answer(found[0], images_of(3)), answer(found[1], images_of(3)))


def test_a_converted_network_is_found_again_and_gives_the_same_bits(
    model: LoadedModel, cache: Path
) -> None:
    fresh = answer(open_openvino(model, SIZE, FP32), images_of(0))

    found = answer(open_openvino(blank(model), SIZE, replace(FP32, cache=cache)), images_of(0))

    assert torch.equal(found, fresh)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("change", [{"digest": "1"}, {"adapter_digest": "1"}])
def test_another_model_or_adapter_is_converted_anew(
    model: LoadedModel, cache: Path, change: dict[str, Any]
) -> None:
    other = replace(blank(model), **change)

    logits = answer(open_openvino(other, SIZE, replace(FP32, cache=cache)), images_of(0))

    assert not logits.any()
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("part", ["network.xml", "network.bin", "sha256"])
def test_a_damaged_cache_is_made_anew(model: LoadedModel, cache: Path, part: str) -> None:
    (place,) = cache.iterdir()
    whole = (place / part).read_bytes()
    (place / part).write_bytes(whole[: len(whole) // 2])

    logits = answer(open_openvino(blank(model), SIZE, replace(FP32, cache=cache)), images_of(0))

    assert not logits.any()
    assert list(cache.iterdir()) == [place]
    found = answer(open_openvino(model, SIZE, replace(FP32, cache=cache)), images_of(0))
    assert torch.equal(found, logits)


def test_a_cache_that_cannot_be_written_costs_only_the_conversion(
    model: LoadedModel, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")

    runtime = open_openvino(model, SIZE, replace(FP32, cache=tmp_path / "file"))

    assert answer(runtime, images_of(0)).shape == (1, 5, SIZE.rows, SIZE.cols)


def test_the_cache_keeps_eight_networks_and_whatever_else_is_there(
    model: LoadedModel, tmp_path: Path
) -> None:
    for number in range(9):
        (tmp_path / f"{number}.openvino").mkdir()
    (tmp_path / "photos").mkdir()

    open_openvino(model, SIZE, replace(FP32, cache=tmp_path))

    names = {path.name for path in tmp_path.iterdir()}
    assert "photos" in names
    assert len(names) == 9
    assert len(names & {f"{number}.openvino" for number in range(9)}) == 7


def test_a_network_that_cannot_be_converted_is_refused(model: LoadedModel) -> None:
    class Unknown(torch.nn.Module):
        def forward(self, maps: list[Tensor]) -> Tensor:
            return torch.special.bessel_j0(maps[0])

    segmenter = small_segmenter()
    segmenter.head = Unknown()

    with pytest.raises(ModelFileError) as error:
        open_openvino(replace(model, segmenter=segmenter), SIZE, FP32)

    assert str(error.value).startswith("OpenVINO cannot convert small (")
    assert str(error.value).endswith("). Add --runtime torch.")


@pytest.mark.slow
def test_openvino_tells_nobody() -> None:
    # A process of its own: here, some other library may have imported OpenVINO before.
    code = (
        "import threading, earthgate_geo.mapping.runtime_openvino as r, openvino.tools.ovc as ovc;"
        "print(type(ovc.telemetry).__module__, threading.active_count())"
    )

    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert told.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "1"]


SIGNAL_AFTER_TWO_NETWORKS = """
import signal, sys
from pathlib import Path
from earthgate_geo.mapping.runtime import RuntimeOptions
from earthgate_geo.mapping.runtime_openvino import open_openvino
from earthgate_geo.model_file import load_model
from earthgate_geo.raster.grid import Size

options = RuntimeOptions(runtime="openvino", precision="fp32", cache=Path(sys.argv[2]))
first, second = (open_openvino(load_model(sys.argv[1]), Size(64, 96), options) for _ in "ab")
del first
del second
signal.signal(signal.SIGTERM, lambda *_: print("alive"))
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.slow
def test_a_signal_after_two_networks_finds_its_stack(kept: Path, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.safetensors")

    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_AFTER_TWO_NETWORKS, str(path), str(kept)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
