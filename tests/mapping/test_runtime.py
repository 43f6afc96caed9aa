from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import small_config, small_segmenter, write_model
from torch import Tensor
from torch.nn import functional

from earthgate_geo.data.sampling import TopDownSampler
from earthgate_geo.data.scenes import NetworkInput, SceneDataset, plan_tiles
from earthgate_geo.errors import EarthgateError, EarthgateWarning, InputError, ModelFileError
from earthgate_geo.mapping.runtime import RuntimeOptions, TorchRuntime, open_runtime
from earthgate_geo.model_file import LoadedModel, load_model
from earthgate_geo.models.segmenter import Segmenter
from earthgate_geo.raster.grid import Size
from earthgate_geo.raster.read import open_scene

ROOT = Path(__file__).parents[2]
SAMPLES = [ROOT / "sample_tiles" / f"{name}.tif" for name in ("town_rgb", "town_irrg")]
PLACES = ("catanduanes_ph", "kampala_ug", "zanzibar_tz")


class Unknown(Segmenter):
    def forward(self, images: Tensor) -> Tensor:
        return torch.special.bessel_j0(super().forward(images))


class Fickle(Segmenter):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (-1 if images.std() > 0 else 1)


def loaded(segmenter: Segmenter) -> LoadedModel:
    return LoadedModel(segmenter=segmenter.eval(), name="odd", digest="0", card={}, replay=None)


def images_of(count: int, *, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def real_tiles(model: LoadedModel, path: Path, most: int) -> list[tuple[Tensor, Tensor]]:
    """Images (1, band, row, col) for the network and validity (1, row, col)."""
    config = model.segmenter.config
    with open_scene(path) as scene:
        bands = scene.choose_bands(config.bands)
        plan = plan_tiles(
            scene.grid,
            tile_px=config.tile_px,
            stride_px=config.tile_px,
            gsd_min_m=config.gsd_min_m,
            gsd_max_m=config.gsd_max_m,
        )
        prepare = NetworkInput(scene.radiometry(bands), plan.network)
        dataset = SceneDataset(scene, bands=bands, transforms=prepare)
        queries = list(TopDownSampler(dataset, plan.tile, plan.stride))
        samples = [dataset[query] for query in queries[:: -(-len(queries) // most)]]
    size = (plan.network.rows, plan.network.cols)
    return [
        (s["image"][None], functional.interpolate(s["valid"][None, None].float(), size)[0] > 0)
        for s in samples
    ]


def test_torch_gives_the_logits_of_the_network() -> None:
    network, images = small_segmenter(), images_of(2)
    runtime = TorchRuntime(network, batch=2)

    logits = runtime.start(images)()

    assert (runtime.name, runtime.precision, runtime.batch, runtime.depth) == (
        "torch",
        "fp32",
        2,
        1,
    )
    assert logits.dtype == torch.float32
    with torch.inference_mode():
        torch.testing.assert_close(logits, network(images))


def test_bf16_gives_float32_logits_that_were_rounded_on_the_way() -> None:
    network, images = small_segmenter(), images_of(1)

    exact = TorchRuntime(network).start(images)()
    rounded = TorchRuntime(network, precision="bf16").start(images)()

    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0)


def test_a_batch_that_does_not_fit_is_run_in_parts_and_nobody_notices() -> None:
    calls: list[int] = []

    def hungry(images: Tensor) -> Tensor:
        calls.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("full")
        return 2 * images

    images = images_of(7)
    runtime = TorchRuntime(hungry, batch=7)

    first, second = runtime.start(images)(), runtime.start(images)()

    assert calls == [7, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert runtime.batch == 7
    assert torch.equal(first, 2 * images)
    assert torch.equal(second, 2 * images)


def test_one_tile_that_does_not_fit_ends_the_run() -> None:
    def insatiable(_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(EarthgateError) as error:
        TorchRuntime(insatiable, batch=4).start(images_of(4))

    assert str(error.value) == (
        "the memory of cpu does not hold the network with a tile. "
        "Close other programs that use it, or map with --device cpu."
    )


def test_openvino_on_a_graphics_card_is_refused() -> None:
    options = RuntimeOptions(runtime="openvino", device=torch.device("cuda"))

    with pytest.raises(InputError) as error:
        open_runtime(loaded(small_segmenter()), Size(64, 64), options)

    assert str(error.value) == (
        "--runtime openvino on the device cuda; expected the CPU. "
        "Add --device cpu, or leave the runtime to earthgate."
    )


def test_a_cpu_runs_openvino_and_one_image_at_a_time(tmp_path: Path) -> None:
    model = load_model(write_model(tmp_path / "model.safetensors"))
    options = RuntimeOptions(precision="fp32")

    runtime = open_runtime(model, Size(64, 64), options)
    in_torch = open_runtime(model, Size(64, 64), replace(options, runtime="torch"))

    assert (runtime.name, runtime.precision, runtime.batch) == ("openvino", "fp32", 1)
    assert (in_torch.name, in_torch.precision, in_torch.batch) == ("torch", "fp32", 1)
    images = images_of(1)
    torch.testing.assert_close(runtime.start(images)(), in_torch.start(images)(), atol=1e-4, rtol=0)


def test_a_network_that_openvino_does_not_know_runs_in_torch_with_a_warning() -> None:
    model = loaded(Unknown(small_config()))

    with pytest.warns(EarthgateWarning, match=r"^OpenVINO cannot convert odd \(") as warned:
        runtime = open_runtime(model, Size(64, 64), RuntimeOptions())

    assert str(warned[0].message).endswith("): torch runs the network instead, which takes longer.")
    assert runtime.name == "torch"


def test_a_network_that_its_tracer_misunderstands_runs_in_torch_with_a_warning() -> None:
    model = loaded(Fickle(small_config()))

    with pytest.warns(EarthgateWarning) as warned:
        runtime = open_runtime(model, Size(64, 64), RuntimeOptions())

    assert str(warned[0].message) == (
        "odd gives other numbers in OpenVINO than in torch: "
        "torch runs the network instead, which takes longer."
    )
    assert runtime.name == "torch"


def test_a_network_that_openvino_gets_wrong_is_refused_where_it_was_asked_for() -> None:
    model = loaded(Fickle(small_config()))

    with pytest.raises(ModelFileError) as error:
        open_runtime(model, Size(64, 64), RuntimeOptions(runtime="openvino"))

    assert str(error.value) == (
        "odd gives other numbers in OpenVINO than in torch. Add --runtime torch."
    )


def agreement(
    runtime: str, precision: str, tiles: list[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """Share of labels as plain torch gives them, and the widest margin of one that differs."""
    model = load_model()
    size = Size(model.segmenter.config.tile_px, model.segmenter.config.tile_px)
    try:
        opened = open_runtime(model, size, RuntimeOptions(runtime=runtime, precision=precision))
    except InputError as refusal:
        if precision != "bf16":
            raise
        pytest.skip(str(refusal))  # a CPU without it
    pixels, margins = 0, [torch.zeros(1)]
    for images, valid in tiles:
        with torch.inference_mode():
            expected = model.segmenter(images)
        differs = (opened.start(images)().argmax(dim=1) != expected.argmax(dim=1)) & valid
        best, second = expected.softmax(dim=1).topk(2, dim=1).values.unbind(dim=1)
        pixels += int(valid.sum())
        margins.append((best - second)[differs])
    apart = torch.cat(margins)
    return 1 - (len(apart) - 1) / pixels, float(apart.max())


WAYS = pytest.mark.parametrize(
    ("runtime", "precision", "least_share", "most_apart"),
    [
        # Over a tile that is half empty, OpenVINO's sums lose digits: ties are that wide.
        ("openvino", "fp32", 0.9999, 0.002),
        ("openvino", "bf16", 0.995, 0.02),
        ("torch", "fp32", 0.9999, 1e-5),
        ("torch", "bf16", 0.995, 0.02),
    ],
)


@WAYS
def test_every_runtime_agrees_with_plain_torch_on_sample_tiles(
    runtime: str, precision: str, least_share: float, most_apart: float
) -> None:
    tiles = [tile for path in SAMPLES for tile in real_tiles(load_model(), path, 1)]

    share, apart = agreement(runtime, precision, tiles)

    assert share >= least_share
    assert apart < most_apart


@pytest.mark.slow
@WAYS
def test_every_runtime_agrees_with_plain_torch_on_real_scenes(
    runtime: str, precision: str, least_share: float, most_apart: float, shared_data: Path
) -> None:
    paths = [shared_data / "scenes" / f"{place}_scene.tif" for place in PLACES]
    tiles = [tile for path in paths for tile in real_tiles(load_model(), path, 2)]

    share, apart = agreement(runtime, precision, tiles)

    assert share >= least_share
    assert apart < most_apart
