"""All outputs of a job appear together at its end, or none does."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from earthgate_geo.errors import OutputError, StorageError
from earthgate_geo.raster.destination import Destination, publish


@contextmanager
def staged(
    outputs: Mapping[str, Path],
    *,
    overwrite: bool,
    inputs: Sequence[str],
    keep: Mapping[str, str] | None = None,
) -> Iterator[dict[str, Path]]:
    """Give each output, by role, a hidden path to be built at; name them all on success.

    Outputs stay locked against another run all the while. Outputs of one folder are built in one
    folder, under their own names, so that companions find each other. A run that is killed as the
    outputs get their names leaves some of them; the next one may replace those.

    Args:
        outputs: Final names by role.
        overwrite: Whether older outputs may be replaced.
        inputs: Files that no output may be.
        keep: By role, an entry of the output's hidden folder that outlives a run that failed.

    Raises:
        OutputError: An output exists, cannot be written, or is being written.
        StorageError: The disk refuses.
    """
    with ExitStack() as stack:
        built: dict[str, Path] = {}
        rooms: dict[Path, Path] = {}
        places = []
        for role, path in outputs.items():
            place = Destination(
                path, overwrite=overwrite, inputs=inputs, keep=(keep or {}).get(role)
            )
            places.append(stack.enter_context(place))
            built[role] = rooms.setdefault(path.parent, place.scratch) / path.name
        try:
            yield built
        except (OutputError, StorageError) as error:
            files = {built[role]: path for role, path in outputs.items()}
            folders = {room: folder for folder, room in rooms.items()}
            raise _renamed(error, files | folders) from error
        for place in places:
            place.begin_publishing()
        for role, path in reversed(list(outputs.items())):
            publish(built[role], path)  # the first comes last: where it stands, all stand


def _renamed(
    error: OutputError | StorageError, asked: Mapping[Path, Path]
) -> OutputError | StorageError:
    """Say it with the paths that the user gave; files come before the folders they are in."""
    facts = {"found": error.found, "expected": error.expected, "fix": error.fix}
    for hidden, path in asked.items():
        facts = {key: text.replace(str(hidden), str(path)) for key, text in facts.items()}
    return type(error)(**facts)
