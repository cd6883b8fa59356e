"""Views of a picture over which its answer can be averaged: the symmetries of a rectangle or a square."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from ..errors import InputError

__all__ = ["VIEWS", "check_views", "views_of"]

# As it is; and turned left to right; and upside down; and all that by a quarter turn.
VIEWS = (1, 2, 4, 8)


def check_views(views: int, size: Sequence[int]) -> None:
    """Check that pictures have so many views.

    Args:
        views: Of `VIEWS`.
        size: Of the pictures, `(..., H, W)`.

    Raises:
        InputError: If they have not.
    """
    if views not in VIEWS:
        raise InputError(f"--views {views}: must be one of {', '.join(map(str, VIEWS))}")
    if views == 8 and size[-2] != size[-1]:
        raise InputError(f"--views 8: turns pictures by 90 degrees, and these are {size[-2]}x{size[-1]} px; give 4")


def views_of(pictures: Tensor, views: int) -> Iterator[Tensor]:
    """The first so many views of pictures `(N, C, H, W)`, each of the same shape, themselves first."""
    for view in range(views):
        x = pictures.transpose(2, 3) if view & 4 else pictures
        flipped = [dim for dim, bit in ((3, 1), (2, 2)) if view & bit]
        yield x.flip(flipped) if flipped else x
