import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import small_segmenter, write_model
from numpy.typing import NDArray
from torch import Tensor, nn

from earthgate_cli.main import main
from earthgate_geo.errors import InputError, MissingDependencyError, ModelFileError
from earthgate_geo.export_request import ExportRequest
from earthgate_geo.jobs.export import run_export
from earthgate_geo.model_file import AdapterRecord, LoadedModel, load_model, save_adapter
from earthgate_geo.models.backbone import BackboneConfig, freeze
from earthgate_geo.models.heads import FpnHead, HeadConfig
from earthgate_geo.models.view import View
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.onnx import write_onnx
from earthgate_geo.raster.grid import Size, Window
from earthgate_geo.raster.read import open_scene
from earthgate_geo.toolbox.attach import Toolbox, attach, fold
from earthgate_geo.toolbox.base import GATED, ToolboxConfig

ROOT = Path(__file__).parents[1]
TILE_PX = 512
SMALL = {"depth": 4, "embed_dim": 64, "num_heads": 2}
NETWORKS: dict[str, tuple[str, dict[str, Any], str]] = {
    "plain": ("vit_tiny_patch16_224", {"img_size": [64, 64]}, "linear"),
    "dinov2": ("vit_small_patch14_reg4_dinov2", {"img_size": [64, 64], "patch_size": 16}, "fpn"),
    "dinov3": ("vit_small_patch16_dinov3", {}, "mask2former"),
    "sam": ("samvit_base_patch16", {"img_size": 64, "global_attn_indexes": (1, 3)}, "linear"),
}
MODULES = ToolboxConfig(kinds=GATED, rank=4, bottleneck=6, frequency_bottleneck=8)


def scaled_tiles(path: Path, *, most: int = 4) -> Tensor:
    """Tiles of a scene in 0..1 as the network sees them when earthgate maps."""
    with open_scene(str(path)) as scene:
        bands = (1, 2, 3)
        radiometry = scene.radiometry(bands)
        size = scene.grid.size
        rows = range(0, max(1, size.rows - TILE_PX), TILE_PX - 32)
        cols = range(0, max(1, size.cols - TILE_PX), TILE_PX - 32)
        windows = [Window(row, col, Size(TILE_PX, TILE_PX)) for row in rows for col in cols]
        pixels = [scene.read(window, bands).values for window in windows[:most]]
        return torch.from_numpy(np.stack([radiometry.scale(each) for each in pixels])).float()


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, images: Tensor | NDArray[np.float32]) -> Tensor:
    (probabilities,) = session.run(None, {session.get_inputs()[0].name: np.asarray(images)})
    return torch.from_numpy(probabilities)


def share_of_equal_labels(session: Any, network: nn.Module, images: Tensor) -> float:
    with torch.inference_mode():
        expected = network(images).argmax(1)
    return float((run(session, images).argmax(1) == expected).float().mean())


def stirred(toolbox: Toolbox) -> None:
    """Give every module of a toolbox weights that do something."""
    generator = torch.Generator().manual_seed(1)
    toolbox.open(toolbox.slots)
    with torch.no_grad():
        for slot in toolbox.slots:
            for parameter in toolbox.parameters(slot).values():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def loaded(segmenter: nn.Module) -> LoadedModel:
    return LoadedModel(segmenter=segmenter, name="small", digest="0", card={}, replay=None)


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "packaged.onnx"
    run_export(ExportRequest(onnx=path), SilentMonitor())
    return path


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a small model."""
    monkeypatch.chdir(tmp_path)
    return write_model(tmp_path / "small.safetensors")


@pytest.mark.parametrize("name", ["town_rgb", "town_irrg"])
def test_labels_of_sample_tiles_are_those_of_torch(packaged: Path, name: str) -> None:
    tiles = scaled_tiles(ROOT / "sample_tiles" / f"{name}.tif")

    assert share_of_equal_labels(session_of(packaged), load_model().segmenter, tiles) >= 0.999


@pytest.mark.parametrize("name", ["quebec_tile1", "zurich_swissimage_0.5m"])
def test_labels_of_real_scenes_are_those_of_torch(
    packaged: Path, shared_data: Path, name: str
) -> None:
    tiles = scaled_tiles(shared_data / "geotiffs" / "aerial_rgb" / f"{name}.tif", most=2)

    assert share_of_equal_labels(session_of(packaged), load_model().segmenter, tiles) >= 0.999


@pytest.mark.slow
def test_every_family_of_backbones_and_heads_takes_any_batch(tmp_path: Path) -> None:
    differences = {}
    for name, (backbone, options, head) in NETWORKS.items():
        segmenter = small_segmenter(
            backbone=BackboneConfig(name=backbone, options=SMALL | options),
            head=HeadConfig(kind=head, width=32, queries=6, pixel_layers=1, decoder_layers=2),
        )
        freeze(segmenter)
        toolbox = attach(segmenter.backbone, MODULES)
        stirred(toolbox)
        toolbox.open(())
        fold(toolbox)
        write_onnx(tmp_path / f"{name}.onnx", loaded(segmenter), tile_px=96)
        session = session_of(tmp_path / f"{name}.onnx")
        for batch in (1, 2, 5):
            images = torch.rand(batch, 3, 96, 96, generator=torch.Generator().manual_seed(batch))
            with torch.inference_mode():
                expected = segmenter(images).softmax(1)
            found = run(session, images)
            assert found.shape == expected.shape
            differences[name, batch] = float((found - expected).abs().max())

    assert {key: each for key, each in differences.items() if each > 1e-4} == {}


def test_an_adapter_file_is_part_of_the_network(small: Path) -> None:
    base = load_model(small)
    modules = attach(base.segmenter.backbone, MODULES)
    stirred(modules)
    record = AdapterRecord(
        decision="adapted",
        evidence={},
        slots=tuple(map(str, modules.slots)),
        scores={},
        trained_parameters=1,
        steps=1,
        seed=0,
        scene="a",
        view=View(order=(2, 0, 1), gamma=0.8),
    )
    save_adapter("a.safetensors", base, record=record, toolbox=(modules, MODULES))

    document = run_export(
        ExportRequest(onnx=Path("a.onnx"), model="a.safetensors"), SilentMonitor()
    )

    adapted = load_model("a.safetensors")
    images = torch.rand(2, 3, 64, 64)
    session = session_of(Path("a.onnx"))
    assert share_of_equal_labels(session, adapted.segmenter, images) >= 0.999
    assert share_of_equal_labels(session, load_model(small).segmenter, images) < 0.999
    assert document["model"]["adapter"] == adapted.adapter_digest


def test_the_file_says_what_deepness_asks(packaged: Path) -> None:
    session = session_of(packaged)
    told = session.get_modelmeta().custom_metadata_map
    facts = {key: json.loads(text) for key, text in told.items()}

    assert facts["model_type"].capitalize() == "Segmentor"
    assert list(facts["class_names"]) == ["0", "1", "2", "3", "4"]
    assert list(facts["class_names"].values())[3] == "vegetation"
    assert 20 < float(facts["resolution"]) < 60  # centimetres, within the model's range
    assert (facts["tile_size"], facts["tiles_overlap"]) == (512, 25)
    assert (facts["standardization_mean"], facts["standardization_std"]) == ([0] * 3, [1] * 3)
    assert (facts["seg_thresh"], facts["seg_small_segment"]) == (0, 0)
    assert facts["EARTHGATE_MODEL"]["digest"] == load_model().digest
    (image,), (output,) = session.get_inputs(), session.get_outputs()
    assert (image.shape, image.type) == (["batch", 3, 512, 512], "tensor(float)")
    assert output.shape == ["batch", 5, 512, 512]


def test_every_pixel_gets_a_class_in_the_steps_of_deepness(packaged: Path) -> None:
    with open_scene(str(ROOT / "sample_tiles" / "town_rgb.tif")) as scene:
        tile = scene.read(Window(0, 0, Size(512, 512)), (1, 2, 3)).values
    session = session_of(packaged)
    facts = session.get_modelmeta().custom_metadata_map
    mean, std = (json.loads(facts[f"standardization_{each}"]) for each in ("mean", "std"))
    batch = np.float32(tile.transpose(1, 2, 0)[None] / 255)

    found = run(session, np.float32((batch - mean) / std).transpose(0, 3, 1, 2)).numpy()
    found[found < json.loads(facts["seg_thresh"])] = 0

    with torch.inference_mode():
        expected = load_model().segmenter(torch.from_numpy(np.float32(tile / 255))[None])
    assert (found.argmax(1) == expected.argmax(1).numpy()).mean() >= 0.999
    assert np.allclose(found.sum(1), 1, atol=1e-5)


def test_onnx_runtime_1_16_knows_the_operators(packaged: Path) -> None:
    document = onnx.load(packaged)

    assert [(entry.domain, entry.version) for entry in document.opset_import] == [("", 17)]
    assert document.ir_version <= 9


def test_the_command_says_what_it_wrote(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["export", "--onnx", "a.onnx", "--model", str(small), "--tile", "96"])

    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[:2] == [
        "small for 96 x 96 px of red, green, blue, any number at once",
        "classes building, road, bare ground, vegetation, water; best at about 0.24 m a pixel",
    ]
    assert lines[2].startswith("probabilities in ONNX Runtime differ by ")
    assert lines[3:] == ["wrote a.onnx"]
    assert session_of(Path("a.onnx")).get_inputs()[0].shape == ["batch", 3, 96, 96]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("b.onnx", "Error: b.onnx exists. Pass --overwrite to replace it, or give another name.\n"),
        ("b.pt", "Error: b.pt for the onnx; expected a name ending in .onnx.\n"),
    ],
)
def test_a_place_that_cannot_be_taken_is_refused(
    small: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    Path("b.onnx").write_text("mine")

    code = main(["export", "--onnx", name, "--model", str(small)])

    assert (code, capsys.readouterr().err) == (2, said)
    assert Path("b.onnx").read_text() == "mine"


def test_a_network_with_heights_is_refused(tmp_path: Path) -> None:
    model = loaded(small_segmenter(heights=True))

    with pytest.raises(InputError) as refusal:
        write_onnx(tmp_path / "a.onnx", model, tile_px=64)

    assert str(refusal.value) == (
        "small sees heights, and ONNX files are for programs that give a network the bands of one "
        "image; expected a model, or an adapter made without --dsm."
    )


def test_a_network_that_onnx_cannot_say_is_refused_and_leaves_no_file(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FpnHead, "forward", lambda _head, maps: torch.special.bessel_j0(maps[0]))

    with pytest.raises(ModelFileError) as refusal:
        run_export(ExportRequest(onnx=Path("a.onnx"), model=str(small)), SilentMonitor())

    assert str(refusal.value).startswith("small cannot be converted to ONNX (")
    assert [path.name for path in small.parent.iterdir()] == [small.name]


def test_a_network_that_gives_other_numbers_is_refused(tmp_path: Path) -> None:
    class Fickle(nn.Module):
        def forward(self, maps: list[Tensor]) -> Tensor:
            # A tracer follows the branch of the example, a grey image.
            return maps[0][:, :5] if maps[0].std() < self.limit else -maps[0][:, :5]

    segmenter = small_segmenter()
    with torch.inference_mode():
        grey, _ = segmenter.features(torch.full((2, 3, 64, 64), 0.5))
        noise, _ = segmenter.features(torch.rand(2, 3, 64, 64))
    segmenter.head = Fickle()
    segmenter.head.limit = float(grey[0].std() + noise[0].std()) / 2

    with pytest.raises(ModelFileError) as refusal:
        write_onnx(tmp_path / "a.onnx", loaded(segmenter), tile_px=64)

    assert str(refusal.value) == (
        "small gives other numbers in ONNX Runtime than in torch. Map with earthgate itself."
    )


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "earthgate_geo.onnx")

    with pytest.raises(MissingDependencyError) as refusal:
        importlib.import_module("earthgate_geo.onnx")

    assert str(refusal.value) == (
        "an ONNX file needs onnx and onnxruntime, and they are not both installed. "
        "Install them with: pip install 'earthgate-geo[onnx]'."
    )
