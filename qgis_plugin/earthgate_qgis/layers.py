"""Layers of QGIS and the engine's files: what goes in, what comes back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qgis.core import (
    NULL,
    QgsCoordinateReferenceSystem,
    QgsEditorWidgetSetup,
    QgsFeatureRequest,
    QgsLayerTreeGroup,
    QgsLayerTreeLayer,
    QgsLayerTreeNode,
    QgsMapLayer,
    QgsMapLayerStyle,
    QgsProject,
    QgsProviderRegistry,
    QgsRasterLayer,
    QgsVectorFileWriter,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QTimer

CLASS_FIELD = "class"
"""Field of the files that ``label_layer`` makes."""

_MAP_PROPERTY = "earthgate/map"
_RESULT_PROPERTY = "earthgate/result"
_OTHER = "other"  # what the engine calls none of the classes
_SHOWN_VALUES = 5
_LABEL_OPACITY = 0.6  # what is labelled stays visible
_SPELLINGS = {
    "r": "red",
    "g": "green",
    "b": "blue",
    "near infrared": "nir",
    "near-infrared": "nir",
    "near_infrared": "nir",
}
# Topmost first: polygons above the map, so that a click identifies them.
_SHOWN = (("vector", "Polygons"), ("map", "Map"), ("confidence", "Confidence"))


class LayerError(Exception):
    """A layer cannot be used; ``str()`` is one sentence with the next step."""


def file_of(layer: QgsMapLayer) -> str:
    """Return the path of the file that a raster layer shows.

    Raises:
        LayerError: It shows a service, or only a part of what a file holds.
    """
    parts = QgsProviderRegistry.instance().decodeUri(layer.providerType(), layer.source())
    path = parts.get("path") or ""
    if layer.providerType() != "gdal" or not Path(path).is_file():
        raise LayerError(
            f"{layer.name()} is no file on this machine; save the part to map with "
            "Layer > Save As... and choose the saved layer."
        )
    if parts.get("layerName"):
        raise LayerError(
            f"{layer.name()} is one of several rasters in {Path(path).name}; save it as a "
            "GeoTIFF with Layer > Save As... and choose the saved layer."
        )
    return path


def crs_to_assume(layers: Iterable[QgsRasterLayer]) -> str:
    """Return the reference system that the user gave layers whose files name none, else nothing.

    Raises:
        LayerError: Neither says one, or they are different, and the engine takes one.
    """
    found = {crs for crs in map(_given_crs, layers) if crs}
    if len(found) > 1:
        raise LayerError(
            "The files of the scene and its heights name no reference system, and in the project "
            "theirs differ; save one of them as a GeoTIFF first."
        )
    return next(iter(found), "")


def _given_crs(layer: QgsRasterLayer) -> str:
    crs = _crs(layer)
    if layer.dataProvider().crs().isValid():
        return ""
    return crs.authid() if crs.authid().startswith("EPSG:") else crs.toWkt()


def _crs(layer: QgsMapLayer) -> QgsCoordinateReferenceSystem:
    if not layer.crs().isValid():
        raise LayerError(
            f"{layer.name()} has no coordinate reference system; set it with Layer > Set CRS of "
            "Layer(s)."
        )
    return layer.crs()


def guess_bands(layer: QgsRasterLayer, wanted: Sequence[str]) -> list[int]:
    """Return which band of the layer shows each of ``wanted``, 0 where nothing says so.

    Descriptions win over colour interpretations, as in the engine: GDAL calls the bands of
    every new file of three red, green and blue. A single band, and three in which not all are
    found, such as a false colour composite, serve as they lie.
    """
    meanings = [_meaning(layer, band, wanted) for band in range(1, layer.bandCount() + 1)]
    found = [meanings.index(name) + 1 if name in meanings else 0 for name in wanted]
    pictures = [band for band, meaning in enumerate(meanings, 1) if meaning != "alpha"]
    if not all(found) and len(pictures) == 1:
        return pictures * len(wanted)
    if not all(found) and len(pictures) == len(wanted) == 3:
        return pictures
    return found


def _meaning(layer: QgsRasterLayer, band: int, wanted: Sequence[str]) -> str:
    provider = layer.dataProvider()
    described = provider.generateBandName(band).partition(":")[2].strip().lower()
    described = _SPELLINGS.get(described, described)
    if described in {*wanted, "red", "green", "blue", "nir", "alpha"}:
        return described
    return provider.colorInterpretationName(band).lower()


def write_labels(
    layer: QgsVectorLayer, field: str, folder: str, classes: Sequence[str] = ()
) -> str:
    """Write the layer's polygons as they are now, unsaved edits with them, and return the file.

    Args:
        layer: Polygons of known classes.
        field: Its field with the class.
        folder: Where the file goes.
        classes: The model's, if they are known.

    Raises:
        LayerError: There are none, they name other classes or no reference system, or they
            cannot be written.
    """
    _crs(layer)
    now = layer.materialize(QgsFeatureRequest())  # a copy of what the edit buffer shows
    if not now.featureCount():
        raise LayerError(f"{layer.name()} has no polygons yet; digitise some, or choose no labels.")
    column = now.fields().lookupField(field)
    if classes:
        _refuse_unknown(layer.name(), field, now.uniqueValues(column), classes)
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName = "GPKG"
    options.attributes = [column]
    # Fields of users are called fid and geom, too.
    options.layerOptions = ["FID=earthgate_fid", "GEOMETRY_NAME=earthgate_geometry"]
    path = str(Path(folder) / "labels.gpkg")
    failure = _written(now, path, options)
    if failure:
        raise LayerError(f"{layer.name()} cannot be written to {path}: {failure}.")
    return path


def _refuse_unknown(name: str, field: str, values: Iterable[Any], classes: Sequence[str]) -> None:
    """Refuse what the engine would, which does not know the layer and names options instead."""
    known = {*classes, _OTHER, *map(str, range(len(classes)))}
    said = {str(value) for value in values if value != NULL}
    unknown = sorted({word for word in said if word.strip()} - known)  # blank says as little
    if unknown:
        raise LayerError(
            f"{name} has {', '.join(map(repr, unknown[:_SHOWN_VALUES]))} in its field {field}; "
            f"expected the model's classes {', '.join(classes)}, or {_OTHER}; change them there."
        )


def label_layer(
    project: QgsProject, path: str, crs: QgsCoordinateReferenceSystem, classes: Sequence[str]
) -> QgsVectorLayer:
    """Return the project's layer of a file for labels; file and layer are made where missing.

    Args:
        project: Where the layer goes.
        path: A GeoPackage.
        crs: Reference system of a new file.
        classes: What the form for a new polygon offers.

    Raises:
        LayerError: It cannot be written.
    """
    known = layers_of(project, [path])
    if known:
        return known[0]
    if not Path(path).exists():
        _make_label_file(path, crs)
    layer = QgsVectorLayer(path, Path(path).stem, "ogr")
    if not layer.isValid():
        raise LayerError(f"{path} is there, but does not open; rename it, and try again.")
    choices = {"map": [{name: name} for name in classes]}
    column = layer.fields().lookupField(CLASS_FIELD)
    layer.setEditorWidgetSetup(column, QgsEditorWidgetSetup("ValueMap", choices))
    layer.setOpacity(_LABEL_OPACITY)
    project.addMapLayer(layer, False)
    project.layerTreeRoot().insertLayer(0, layer)
    return layer


def _make_label_file(path: str, crs: QgsCoordinateReferenceSystem) -> None:
    empty = QgsVectorLayer(f"Polygon?field={CLASS_FIELD}:string(80)", "", "memory")
    empty.setCrs(crs)
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName = "GPKG"
    failure = _written(empty, path, options)
    if failure:
        raise LayerError(f"{path} cannot be written: {failure}; choose another folder.")


def _written(
    layer: QgsVectorLayer, path: str, options: QgsVectorFileWriter.SaveVectorOptions
) -> str:
    """Write the layer and return what went wrong, empty if nothing did."""
    context = QgsProject.instance().transformContext()
    failure, sentence, *_ = QgsVectorFileWriter.writeAsVectorFormatV3(layer, path, context, options)
    return sentence if failure != QgsVectorFileWriter.WriterError.NoError else ""


def add_results(project: QgsProject, name: str, document: Mapping[str, Any]) -> QgsLayerTreeGroup:
    """Add what the engine wrote in one group, in place of earlier layers of the same files.

    Args:
        project: Where the layers go.
        name: Name of the group, the scene's.
        document: The engine's result document.

    Raises:
        LayerError: QGIS cannot open some; the others are there.
    """
    outputs, closed = document["outputs"], []
    group = _group(project, name, outputs["map"])
    for layer in layers_of(project, outputs.values()):
        project.removeMapLayer(layer.id())
    for role, title in _SHOWN:
        if role not in outputs:
            continue
        path = outputs[role]
        layer = (
            QgsVectorLayer(path, title, "ogr") if role == "vector" else QgsRasterLayer(path, title)
        )
        if not layer.isValid():
            closed.append(path)
            continue
        layer.setCustomProperty(_RESULT_PROPERTY, role)
        project.addMapLayer(layer, False)
        node = group.addLayer(layer)
        node.setItemVisibilityChecked(role != "confidence")
        _show_expanded(node, role == "map")  # polygons have the same legend
    _show_expanded(group, True)
    if closed:
        raise LayerError(
            f"QGIS cannot open {', '.join(closed)}; a % in the name of a folder can be the cause."
        )
    return group


def _show_expanded(node: QgsLayerTreeNode, expanded: bool) -> None:  # noqa: FBT001
    node.setExpanded(not expanded)  # QGIS draws no state that did not change
    node.setExpanded(expanded)


def _group(project: QgsProject, name: str, map_path: str) -> QgsLayerTreeGroup:
    root, mark = project.layerTreeRoot(), _key(map_path)
    for group in root.findGroups(True):
        if group.customProperty(_MAP_PROPERTY) == mark:
            return group
    group = root.insertGroup(_below_vectors(root), name)
    group.setCustomProperty(_MAP_PROPERTY, mark)
    return group


def _below_vectors(root: QgsLayerTreeGroup) -> int:
    """Return the place under the vector layers that lie on top, such as labels being digitised."""
    nodes = root.children()
    for index, node in enumerate(nodes):
        layer = node.layer() if isinstance(node, QgsLayerTreeLayer) else None
        if not isinstance(layer, QgsVectorLayer):
            return index
    return len(nodes)


def is_result(layer: QgsMapLayer) -> bool:
    """Whether ``add_results`` made the layer, so that it is neither scene nor labels."""
    return layer.customProperty(_RESULT_PROPERTY) is not None


def layers_of(project: QgsProject, files: Sequence[str]) -> list[QgsMapLayer]:
    """Return the project's layers that show one of the files."""
    keys = {_key(path) for path in files}
    registry = QgsProviderRegistry.instance()
    return [
        layer
        for layer in project.mapLayers().values()
        if _key(registry.decodeUri(layer.providerType(), layer.source()).get("path") or "") in keys
    ]


def _key(path: str) -> str:
    return str(Path(path).resolve()) if path else ""


def refuse_unsaved(project: QgsProject, files: Sequence[str]) -> None:
    """Refuse to replace files of which a layer has unsaved edits.

    Raises:
        LayerError: There is such a layer.
    """
    for layer in layers_of(project, files):
        if isinstance(layer, QgsVectorLayer) and layer.isModified():
            raise LayerError(
                f"{layer.name()} has unsaved edits, and its file is about to be replaced; save or "
                "discard them first."
            )


class LetGo:
    """Closes files that are about to be replaced, until ``open_again``.

    They are open while the project is saved, or it would be saved without them.

    Args:
        project: Whose layers show the files.
        files: What is about to be replaced.
    """

    def __init__(self, project: QgsProject, files: Sequence[str]) -> None:
        self._project, self._files = project, files
        self._closed: list[tuple[str, str, str, str, QgsMapLayerStyle]] = []
        self._is_over = False
        self._close()
        project.writeProject.connect(self._open_to_save)

    def open_again(self) -> None:
        """Open them for good."""
        self._is_over = True
        self._project.writeProject.disconnect(self._open_to_save)
        self._open()

    def _open_to_save(self, *_: Any) -> None:
        self._open()
        QTimer.singleShot(0, self._close)  # once it is saved, or could not be

    def _close(self) -> None:
        if self._is_over:
            return
        for layer in layers_of(self._project, self._files):
            style = QgsMapLayerStyle()
            style.readFromLayer(layer)
            facts = layer.id(), layer.source(), layer.name(), layer.providerType()
            self._closed.append((*facts, style))
            layer.setDataSource("", layer.name(), layer.providerType())

    def _open(self) -> None:
        for key, source, name, provider, style in self._closed:
            layer = self._project.mapLayer(key)
            if layer is not None:  # the user may have removed it meanwhile
                layer.setDataSource(source, name, provider)
                style.writeToLayer(layer)
                layer.triggerRepaint()
        self._closed = []
