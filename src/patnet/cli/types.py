"""Types of options: numbers with a range, whose error messages say what fits."""

from ..train.config import ImageSize, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Probability, Share

__all__ = ["ImageSize", "NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt", "Probability", "Share"]
