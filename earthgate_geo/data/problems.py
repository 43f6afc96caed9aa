"""What is wrong with the files of a job: all of it is told at once, before anything starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from earthgate_geo.errors import DataError, EarthgateError, InputError


class Problems:
    """What is wrong, image by image.

    Args:
        files: Number of images.
        expected: What they should have been.
    """

    def __init__(self, files: int, *, expected: str) -> None:
        self._files, self._expected = files, expected
        self._found: dict[Path, EarthgateError] = {}

    def has(self, image: Path) -> bool:
        """Tell whether something is wrong with an image."""
        return image in self._found

    @contextmanager
    def of(self, image: Path) -> Iterator[None]:
        """Keep an error about an image for later."""
        try:
            yield
        except (InputError, DataError) as error:
            self._found[image] = error

    def tell(self) -> None:
        """Raise what was found, if anything.

        Raises:
            EarthgateError: The error that all share; else a ``DataError`` whose notes are the
                sentences about them, one per image.
        """
        errors = list(self._found.values())
        if len({str(error) for error in errors}) == 1:
            raise errors[0]
        if errors:
            summary = DataError(
                found=f"{len(errors)} of {self._files} scenes cannot train",
                expected=self._expected,
                fix="The lines below say what is wrong with each",
            )
            for image, error in self._found.items():
                sentence = str(error)
                known = str(image) in sentence
                summary.add_note(sentence if known else f"{image}: {sentence}")
            raise summary
