"""Every line of bad input: one whole sentence, the exit code, and no file left behind."""

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from rasters import NORTH_UP, UTM, RasterSpec, write_raster
from safetensors import safe_open
from safetensors.torch import save_file
from workplace import files

from earthgate_cli.main import main
from earthgate_geo.raster.destination import Destination

MODEL = ["--model", "open.safetensors"]
MAP = ["map", "--src", "scene.tif", "--dst", "map.tif", *MODEL]
ADAPT = ["adapt", "--src", "scene.tif", "--dst", "map.tif", *MODEL, "--steps", "1"]
INSIDE = shapely.box(500010, 5199960, 500030, 5199980)
CLASSES = "building, road, bare ground, vegetation, water"


@pytest.fixture
def refused(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused as bad input; give its sentence."""

    def run(*arguments: str, code: int = 2) -> str:
        before = files(place)
        found = main(list(arguments))
        captured = capsys.readouterr()
        assert (found, captured.out) == (code, "")
        assert files(place) == before
        (line,) = captured.err.splitlines()
        assert line.startswith("Error: ")
        return line.removeprefix("Error: ")

    return run


def map_of(scene: str, *more: str) -> list[str]:
    return ["map", "--src", scene, "--dst", "map.tif", *MODEL, *more]


def to(scene: str, command: list[str]) -> list[str]:
    return [scene if word == "scene.tif" else word for word in command]


def write_labels(name: str, *, crs: str | None = UTM, shape=INSIDE, **fields: list[object]) -> None:
    geopandas.GeoDataFrame(fields, geometry=[shape], crs=crs).to_file(name)


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """Mount a file system in memory, or skip the test where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
    if not sys.platform.startswith("linux") or subprocess.run(command, check=False).returncode:
        pytest.skip("cannot mount a file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# Scenes


def test_a_missing_scene(refused) -> None:
    assert refused(*map_of("no.tif")) == "no.tif does not exist; expected a raster file."


def test_a_scene_that_is_no_raster(refused) -> None:
    Path("text.tif").write_text("hello", encoding="utf-8")

    assert refused(*map_of("text.tif")) == (
        "text.tif cannot be opened as a raster; expected a file that GDAL reads, such as "
        "GeoTIFF, VRT or JPEG 2000. See what gdalinfo says about it: gdalinfo text.tif."
    )


def test_an_empty_file(refused) -> None:
    Path("zero.tif").write_bytes(b"")

    assert refused(*map_of("zero.tif")) == (
        "zero.tif is empty (0 bytes); expected a raster file. Copy it again."
    )


@pytest.mark.parametrize("command", [MAP, ADAPT])
def test_a_scene_cut_short_in_the_middle_of_its_blocks(refused, command) -> None:
    spec = RasterSpec(rows=512, cols=512)
    write_raster(Path("whole.tif"), spec, tiled=True, blockxsize=128, blockysize=128)
    with rasterio.open("whole.tif") as whole:
        profile = whole.profile | {"driver": "COG", "blocksize": 128, "overviews": "NONE"}
        for key in ("tiled", "blockxsize", "blockysize", "interleave"):
            profile.pop(key)
        with rasterio.open("cut.tif", "w", **profile) as target:
            target.write(whole.read())
    os.truncate("cut.tif", Path("cut.tif").stat().st_size // 2)

    assert refused(*to("cut.tif", command)) == (
        "cut.tif cannot be read at rows 0 to 511, columns 0 to 511; expected a complete file. "
        "It is damaged or cut short: copy it again from its source."
    )


def test_a_scene_without_crs(refused) -> None:
    write_raster(Path("bare.tif"), RasterSpec(crs=None))

    assert refused(*map_of("bare.tif")) == (
        "bare.tif has no coordinate reference system; expected one that says where its "
        "coordinates lie. Pass --assume-crs, e.g. --assume-crs EPSG:32633, if you know it."
    )


def test_assume_crs_helps_a_scene_without_crs(place) -> None:
    write_raster(Path("bare.tif"), RasterSpec(crs=None))

    assert main(map_of("bare.tif", "--assume-crs", UTM)) == 0
    with rasterio.open("map.tif") as found:
        assert found.crs == UTM


@pytest.mark.parametrize("command", [MAP, ADAPT])
def test_a_scene_without_a_valid_pixel(refused, command) -> None:
    write_raster(Path("void.tif"), RasterSpec(nodata=0), values=np.zeros((3, 60, 80), np.uint8))

    assert refused(*to("void.tif", command)) == (
        "void.tif has no valid pixel; expected pixels that are neither nodata, masked, "
        "transparent nor NaN. Check its nodata value with gdalinfo; --nodata gives another."
    )


@pytest.mark.parametrize("command", [MAP, ADAPT])
def test_a_scene_of_one_pixel_is_mapped(place, command) -> None:
    write_raster(Path("one.tif"), RasterSpec(rows=1, cols=1))

    assert main([*to("one.tif", command), "--vector", "one.gpkg"]) == 0
    with rasterio.open("map.tif") as found:
        assert found.shape == (1, 1)


# Bands


@pytest.mark.parametrize(
    ("bands", "counted"),
    [(2, "2 bands that are not grey and alpha"), (5, "5 bands")],
)
def test_bands_without_a_meaning(refused, bands, counted) -> None:
    write_raster(Path("many.tif"), RasterSpec(bands=bands))

    assert refused(*map_of("many.tif")) == (
        f"many.tif has {counted}, and nothing says which is red, green, blue; expected colour "
        "interpretation or descriptions that name red, green, blue. Say which is which, e.g. "
        f"--bands red=1,green=2,blue={min(bands, 3)}."
    )


def test_bands_that_do_not_fit_the_model(refused) -> None:
    write_raster(Path("many.tif"), RasterSpec(bands=5))

    assert refused(*map_of("many.tif", "--bands", "red=1,nir=4")) == (
        "many.tif: --bands names red, nir, which leaves out green, blue; expected a band for each "
        "of red, green, blue. Say which is which, e.g. --bands red=1,green=2,blue=3."
    )
    assert refused(*map_of("many.tif", "--bands", "red=1,green=2,blue=9")) == (
        "--bands blue=9, but many.tif has 5 bands; expected a number in 1..5."
    )


def test_complex_numbers(refused) -> None:
    write_raster(Path("radar.tif"), RasterSpec(dtype="complex64"))

    assert refused(*map_of("radar.tif")) == (
        "radar.tif holds complex numbers; expected an image of real numbers. Derive one first, "
        "e.g. gdal_translate DERIVED_SUBDATASET:AMPLITUDE:radar.tif amplitude.tif."
    )


def test_a_palette(refused) -> None:
    profile = {"driver": "GTiff", "width": 8, "height": 8, "count": 1, "dtype": "uint8"}
    place_ = {"crs": UTM, "transform": NORTH_UP, "photometric": "palette"}
    with rasterio.open("codes.tif", "w", **profile, **place_) as target:
        target.write(np.ones((1, 8, 8), np.uint8))
        target.write_colormap(1, {0: (255, 0, 0, 255), 1: (0, 255, 0, 255)})

    assert refused(*map_of("codes.tif")) == (
        "codes.tif is a palette image: its values are codes, not brightness; expected an image. "
        "Turn it into colours first with gdal_translate -expand rgb."
    )


# Labels


def labelled(*arguments: str) -> list[str]:
    return [*ADAPT, "--labels", *arguments]


def test_labels_in_another_crs_are_reprojected(place) -> None:
    shape = geopandas.GeoSeries([INSIDE], crs=UTM).to_crs(4326)[0]
    write_labels("l.gpkg", crs="EPSG:4326", shape=shape, **{"class": ["building"]})

    assert main(labelled("l.gpkg", "--label-field", "class")) == 0


def test_missing_labels(refused) -> None:
    assert refused(*labelled("no.gpkg")) == (
        "no.gpkg does not exist; expected labels, vector or raster."
    )


def test_labels_elsewhere(refused) -> None:
    write_labels("l.gpkg", shape=shapely.affinity.translate(INSIDE, 1e4), kind=["building"])

    assert refused(*labelled("l.gpkg", "--label-field", "kind")) == (
        "l.gpkg has no label inside the scene; expected labels that overlap it. Look at both in "
        "QGIS; one of the files may name a wrong CRS."
    )


def test_unknown_class_names(refused) -> None:
    write_labels("l.gpkg", kind=["castle"])

    assert refused(*labelled("l.gpkg", "--label-field", "kind")) == (
        f"field kind of l.gpkg names classes that the model lacks: castle; expected one of "
        f"{CLASSES}. Rename them, e.g. --label-map castle=building or castle=other, or train a "
        "model that has them: earthgate train."
    )
    assert refused(*labelled("l.gpkg", "--label-map", "castle=keep")) == (
        f"--label-map castle=keep; expected one of {CLASSES} or other."
    )


def test_labels_without_a_field_of_classes(refused) -> None:
    write_labels("l.gpkg", height=[3.0])

    assert refused(*labelled("l.gpkg")) == (
        "l.gpkg has the fields height; expected to know which holds the class. Name it with "
        "--label-field, or give all one class, e.g. --label-class building."
    )


def test_evaluate_refuses_labels_as_adapt_does(refused) -> None:
    main([*MAP, "-q"])
    write_labels("l.gpkg", kind=["castle"])

    assert refused("evaluate", "--map", "map.tif", "--labels", "l.gpkg").startswith(
        "l.gpkg has the fields kind; expected to know which holds the class."
    )


# Outputs

NAMES = [
    ("--dst", "m.tif"),
    ("--vector", "v.gpkg"),
    ("--report", "r.html"),
    ("--out", "a.safetensors"),
]


@pytest.mark.parametrize(("option", "name"), NAMES)
def test_a_missing_folder(refused, option, name) -> None:
    assert refused(*ADAPT, option, f"no/{name}") == (
        f"the folder of no/{name} does not exist. Create it."
    )


@pytest.mark.parametrize(("option", "name"), NAMES)
def test_an_output_that_exists(refused, option, name) -> None:
    Path(name).write_text("old", encoding="utf-8")

    assert refused(*ADAPT, option, name) == (
        f"{name} exists. Pass --overwrite to replace it, or give another name."
    )
    assert Path(name).read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("option", ["--confidence", "--probs"])
def test_a_companion_that_exists(refused, option) -> None:
    for name in ("map_conf.tif", "map_probs.tif"):
        Path(name).write_text("old", encoding="utf-8")
    name = {"--confidence": "map_conf.tif", "--probs": "map_probs.tif"}[option]

    assert refused(*MAP, option) == (
        f"{name} exists. Pass --overwrite to replace it, or give another name."
    )


@pytest.mark.parametrize("spelling", ["scene.tif", "sub/../scene.tif", "link.tif"])
def test_an_output_that_is_the_scene(refused, spelling) -> None:
    Path("sub").mkdir()
    Path("link.tif").symlink_to("scene.tif")
    scene = Path("scene.tif").read_bytes()

    assert refused(*ADAPT, "--dst", spelling, "--overwrite") == (
        f"{spelling} is an input of this run; expected another file for the output."
    )
    assert Path("scene.tif").read_bytes() == scene


def test_an_output_that_is_the_model_or_the_labels(refused) -> None:
    write_labels("l.gpkg", kind=["building"])
    assert refused(*ADAPT, "--out", "open.safetensors", "--overwrite") == (
        "open.safetensors is an input of this run; expected another file for the output."
    )
    assert refused(*labelled("l.gpkg"), "--vector", "l.gpkg", "--overwrite") == (
        "l.gpkg is an input of this run; expected another file for the output."
    )


@pytest.mark.parametrize(
    ("option", "name", "role", "ending"),
    [
        ("--dst", "map.png", "map", ".tif"),
        ("--vector", "map.shp", "vector", ".gpkg or .fgb or .parquet"),
        ("--report", "report.pdf", "report", ".html"),
        ("--out", "adapter.pt", "adapter", ".safetensors"),
    ],
)
def test_an_output_with_the_ending_of_another_kind(refused, option, name, role, ending) -> None:
    assert (
        refused(*ADAPT, option, name)
        == f"{name} for the {role}; expected a name ending in {ending}."
    )


def test_vectorize_on_its_own_map(refused) -> None:
    main([*MAP, "-q"])

    assert refused("vectorize", "--map", "map.tif", "--dst", "map.tif", "--overwrite") == (
        "map.tif for the vector; expected a name ending in .gpkg or .fgb or .parquet."
    )


@pytest.mark.parametrize(
    ("command", "output"), [(MAP, "map.tif"), (ADAPT, "scene.adapter.safetensors")]
)
def test_two_runs_on_one_output(refused, command, output) -> None:
    with Destination(output, overwrite=False):
        sentence = refused(*command)

    assert sentence == (
        f"another run is writing {output} (it holds .{output}.earthgate); expected one run at a "
        "time. Wait until it ends, or give another name."
    )


@pytest.mark.parametrize(("option", "name"), NAMES)
def test_a_read_only_folder(refused, place, option, name) -> None:
    with mounted(place / "ro", "-o", "ro"):
        assert refused(*ADAPT, option, f"ro/{name}") == (
            "the folder ro is not writable. Write somewhere else."
        )


def test_a_full_disk(place, capsys) -> None:
    with mounted(place / "small", "-o", "size=64k") as disk:
        code = main([*MAP, "--dst", "small/map.tif", "--probs"])

        line = capsys.readouterr().err
        assert (code, files(disk)) == (1, set())
    assert re.sub(r"\d+ kB", "N kB", line) == (
        "Error: small/map.tif could not be written; expected up to N kB free in small, where "
        "N kB are. Free some space, check the quota or write to another disk, then run again.\n"
    )


def test_a_disk_too_full_for_the_adapter_file(place, capsys) -> None:
    with mounted(place / "small", "-o", "size=64k") as disk:
        code = main([*ADAPT, "--labels", "truth.tif", "--out", "small/a.safetensors"])

        line = capsys.readouterr().err
        assert (code, files(disk)) == (1, set())
    assert line.startswith("Error: small/a.safetensors could not be written (")
    assert line.endswith(". Free space or choose another folder.\n")
    assert not Path("map.tif").exists()


# Options


def test_options_that_do_not_go_together(refused) -> None:
    only = ["adapt", "--src", "scene.tif", *MODEL]

    assert refused(*only, "--vector", "map.gpkg") == (
        "--vector, --confidence, --probs or --stac without --dst; expected a map that they "
        "are made from. Add --dst map.tif."
    )
    assert refused(*only, "--minutes", "1", "--steps", "2") == (
        "--minutes and --steps together; expected one of them. Give --steps to repeat a run "
        "exactly, or --minutes to end in time."
    )
    assert refused(*only, "--label-field", "kind") == (
        "--label-field, --label-class or --label-map without --labels; expected the labels that "
        "they are about. Add --labels polygons.gpkg."
    )


def test_options_of_scenes_that_do_not_go_together(refused) -> None:
    several = ["map", "--src", "scene.tif", "--src", "truth.tif", *MODEL]

    assert refused("map", "--src", "scene.tif") == (
        "neither --dst nor --out-dir; expected a file for the map or a folder for maps."
    )
    assert refused(*several, "--dst", "m.tif") == (
        "2 scenes without --out-dir; expected a folder for their maps."
    )
    assert refused(*several, "--out-dir", "out", "--vector", "m.gpkg") == (
        "--vector together with --out-dir; expected --vector-format, for polygons beside every map."
    )
    assert refused(*several, "--out-dir", "out", "--name", "map.tif") == (
        f"scene.tif and truth.tif would both write {Path('out/map.tif')}; expected a name of its "
        "own for every scene. Number them, e.g. --name {scene}_{n}_map.tif."
    )
    assert refused(*several, "--out-dir", "out", "--name", "{scene}.png") == (
        f"{Path('out/scene.png')} for the map; expected a name ending in .tif."
    )
    assert refused(*MAP, "--workers", "2") == (
        "--scheduler or --workers without --engine dask; expected the engine that they are about."
    )


def test_a_crs_that_proj_does_not_know(refused) -> None:
    assert refused(*MAP, "--assume-crs", "EPSG:foo") == (
        "--assume-crs EPSG:foo; expected a coordinate reference system that PROJ knows, e.g. "
        "EPSG:32633."
    )


def test_options_out_of_range(refused) -> None:
    assert refused(*MAP, "--gsd", "1000") == (
        "--gsd 1000 for a scene whose pixels are 0.5 m; expected 0.016 to 16 m."
    )
    assert refused(*MAP, "--nodata", "300") == (
        "--nodata 300, a value that scene.tif cannot hold; expected a whole number in 0..255."
    )
    assert refused(*MAP, "--device", "abacus") == (
        "--device abacus, which cannot be used here; expected auto, cpu, cuda or mps. See "
        "'earthgate doctor' for the devices of this machine."
    )
    assert refused(*MAP, "--co", "QUALITY=3") == (
        "--co QUALITY=3; expected one of BIGTIFF, BLOCKSIZE, COMPRESS, LEVEL, NUM_THREADS, "
        "PREDICTOR."
    )


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--bands", "red", "'red' is not like red=1,green=2,blue=3."),
        ("--bands", "red=1,red=2", "'red=1,red=2' names a key twice or not at all."),
        ("--gsd", "-1", "-1.0 is not in the range x>0."),
        ("--co", "LEVEL", "'LEVEL' is not like KEY=VAL."),
        ("--memory", "2 sheds", "'2 sheds' is not like 2GB, 500MB or 1.5GiB."),
    ],
)
def test_options_of_the_wrong_form_are_usage_errors(place, capsys, option, value, told) -> None:
    assert main([*MAP, option, value]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"Error: Invalid value for '{option}': {told}"
    )


# Model files


def rewritten(name: str, *, drop: bool = False, reshape: bool = False, **metadata: str) -> str:
    """Write a variation of a good model; return the tensor that was dropped or reshaped."""
    with safe_open("open.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dict
        written = file.metadata()
    first = min(tensors)
    if drop:
        del tensors[first]
    if reshape:
        tensors[first] = torch.zeros(2, 2)
    save_file(tensors, name, written | metadata)
    return first


DAMAGED = (
    "expected a complete file that earthgate wrote. Copy the file again, or give another with "
    "--model."
)
UNREADABLE = (
    "bad.safetensors cannot be read as a model file; expected a .safetensors file that earthgate "
    "wrote. Copy the file again, or give another with --model."
)
BAD = ["--model", "bad.safetensors"]


@pytest.mark.parametrize("command", [MAP, ADAPT])
def test_a_missing_model(refused, command) -> None:
    assert refused(*command, "--model", "nobody") == (
        "no model 'nobody'; expected a .safetensors file or a name that 'earthgate models' lists. "
        "Check the spelling, or copy the file beside the scene and give its path."
    )


@pytest.mark.parametrize("content", [b"", b"garbage", b'\x08\0\0\0\0\0\0\0{"a": 1}'])
def test_a_file_that_is_no_safetensors(refused, content) -> None:
    Path("bad.safetensors").write_bytes(content)

    assert refused(*MAP, *BAD) == UNREADABLE
    assert refused("info", "bad.safetensors") == UNREADABLE


def test_a_model_file_cut_short(refused) -> None:
    whole = Path("open.safetensors").read_bytes()
    Path("bad.safetensors").write_bytes(whole[: len(whole) // 2])

    assert refused(*MAP, *BAD) == UNREADABLE


def test_a_foreign_model_file(refused) -> None:
    save_file({"weight": torch.zeros(2)}, "bad.safetensors")

    assert refused(*MAP, *BAD) == (
        "bad.safetensors is a safetensors file without an earthgate header; expected a model or "
        "adapter file that earthgate wrote. See 'earthgate models' for the models at hand."
    )


def test_a_model_file_of_another_version(refused) -> None:
    rewritten("bad.safetensors", version="9")

    assert refused(*MAP, *BAD) == (
        "bad.safetensors has format version 9; expected version 1. Install an earthgate that "
        "knows it, or make the file again."
    )


def test_a_model_file_without_a_tensor(refused) -> None:
    name = rewritten("bad.safetensors", drop=True)

    assert refused(*MAP, *BAD) == (
        f"bad.safetensors is damaged: the tensor {name} is missing; {DAMAGED}"
    )


def test_a_model_file_with_a_tensor_of_another_shape(refused) -> None:
    name = rewritten("bad.safetensors", reshape=True)

    assert refused(*MAP, *BAD) == (
        f"bad.safetensors is damaged: the tensor {name} has the shape (2, 2) instead of (64,); "
        f"{DAMAGED}"
    )


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_offered_as_a_model(refused, protocol) -> None:
    Path("model.pt").write_bytes(pickle.dumps({"weight": 1}, protocol=protocol))

    assert refused(*MAP, "--model", "model.pt") == PICKLE
    assert refused("info", "model.pt") == PICKLE


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_checkpoint_offered_as_a_model(refused, zipped) -> None:
    torch.save({"weight": 1}, "model.pt", _use_new_zipfile_serialization=zipped)

    assert refused(*MAP, "--model", "model.pt") == PICKLE


PICKLE = (
    "model.pt is a pickle or zip archive, which can run code when opened; expected a .safetensors "
    "file that earthgate wrote. Convert it where you trust it; earthgate never opens it."
)


def test_an_adapter_without_its_base(refused) -> None:
    main([*ADAPT, "-q"])
    Path("open.safetensors").unlink()

    sentence = refused(*MAP, "--model", "scene.adapter.safetensors", "--overwrite")
    assert sentence.startswith("scene.adapter.safetensors needs the model open (")
    assert sentence.endswith(". Copy the base model beside the adapter file.")


# Maps


@pytest.mark.parametrize(
    "command",
    [["vectorize", "--dst", "v.gpkg"], ["evaluate", "--labels", "truth.tif"]],
)
def test_a_raster_that_is_no_map_of_ours(refused, command) -> None:
    assert refused(*command, "--map", "scene.tif") == (
        "scene.tif is not a map that earthgate wrote; expected one band of classes with the tag "
        "EARTHGATE_CLASSES."
    )
