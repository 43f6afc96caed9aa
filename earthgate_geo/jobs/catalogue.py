"""The models at hand as STAC Items."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from earthgate_geo import model_file
from earthgate_geo.errors import ModelFileError
from earthgate_geo.jobs.batch import made_folder
from earthgate_geo.jobs.inventory import Document, list_models
from earthgate_geo.stac_models import ModelEntry, write_model_item
from earthgate_geo.staging import staged


def catalogue_models(
    folder: Path, model_folder: Path | None = None, *, overwrite: bool = False
) -> Document:
    """Write a STAC Item for each model and adapter at hand, named after its file.

    Args:
        folder: Where to; made if it is missing.
        model_folder: Folder of models beside the packaged ones.
        overwrite: Whether Items that exist may be replaced.

    Returns:
        What ``list_models`` does, and ``outputs``: the Item of each file, by its stem. An adapter
        whose base is not at hand is in ``unreadable``.

    Raises:
        OutputError: An Item exists, or the folder cannot be made or written.
        StorageError: The disk refuses.
        MissingDependencyError: pystac is not installed.
    """
    document = list_models(model_folder)
    entries, lost = _described([model_folder] if model_folder else [])
    outputs = {stem: folder / f"{stem}.json" for stem in entries}
    with made_folder(folder), staged(outputs, overwrite=overwrite, inputs=[]) as built:
        for stem, path in outputs.items():
            write_model_item(built[stem], entries[stem], place=path)
    return document | {
        "unreadable": document["unreadable"] + lost,
        "outputs": {stem: str(path) for stem, path in outputs.items()},
    }


def _described(folders: list[Path]) -> tuple[dict[str, ModelEntry], list[str]]:
    """Return models and adapters by name, and a sentence on each adapter without its base."""
    entries = _readable(folders)
    models = {each.digest: each for each in entries.values() if each.header["kind"] == "model"}
    found: dict[str, ModelEntry] = {}
    lost = []
    for stem, entry in entries.items():
        wanted = entry.header.get("base")
        if wanted is None or wanted["digest"] in models:
            base = None if wanted is None else models[wanted["digest"]]
            found[stem] = replace(entry, base=base)
        else:
            lost.append(f"{entry.path} needs the model {wanted['name']}, which is not at hand.")
    return found, lost


def _readable(folders: list[Path]) -> dict[str, ModelEntry]:
    """Return the models and adapters at hand by their names; of two of a name the first counts."""
    found: dict[str, ModelEntry] = {}
    for path in model_file.list_models(folders):
        with suppress(ModelFileError):
            header = model_file.read_header(path)
            entry = ModelEntry(path=path, digest=model_file.file_digest(path), header=header)
            found.setdefault(path.stem, entry)
    return found
