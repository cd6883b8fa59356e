"""Images that cannot be read: wherever a data set is used they are left out and named, up to a share of its images."""

from collections.abc import Sequence

from ..errors import InputError

SHOWN = 3  # reasons in a line of output


class Unreadable(str):
    """The label of a blank image that takes the place of one that cannot be read: the reason on one line.

    A string, since Lightning takes no frozen dataclass in a batch.
    """

    __slots__ = ()


def describe_unreadable(reasons: Sequence[str]) -> str:
    """How many images cannot be read, with the first reasons, each of which names its image."""
    more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
    images = "image" if len(reasons) == 1 else "images"
    return f"{len(reasons)} {images} cannot be read, so left out: {'; '.join(reasons[:SHOWN])}{more}"


def check_unreadable(unreadable: int, images: int, allowed: float, first: str, hint: str) -> None:
    """Check that not too many images cannot be read.

    Args:
        unreadable: Number of images that cannot be read.
        images: Number of all images.
        allowed: Share of them that may be unreadable.
        first: One of the reasons.
        hint: What to do about it.

    Raises:
        InputError: If they are too many.
    """
    if unreadable > allowed * images:
        raise InputError(
            f"{unreadable} of {images} images cannot be read, more than --max-unreadable {allowed:g} allows ({first}); "
            f"{hint}"
        )
