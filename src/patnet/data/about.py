"""What is known of the built-in data sets beyond their pictures: what a model card has to say of them."""

from dataclasses import dataclass

__all__ = ["ABOUT", "AboutData"]


@dataclass(frozen=True)
class AboutData:
    """A data set in words.

    Attributes:
        title: Its name.
        text: What it holds, where it comes from, how it is split: whole sentences.
        licence: As the Hugging Face Hub writes it.
        limits: What a network that learned from it does not know: whole sentences.
        citation: BibTeX.
    """

    title: str
    text: str
    licence: str
    limits: str
    citation: str


_ELPV = AboutData(
    title="ELPV",
    text="2 624 electroluminescence photographs of solar cells from 44 modules, 300x300 px, 8-bit grey, from the "
    "package elpv-dataset. 1 968 cells are for training and 656 for the test, in a split that is fixed in patnet. "
    "Nothing records which module a cell came from, so cells of one module may be in both parts.",
    licence="cc-by-nc-sa-4.0",
    limits="The labels are probabilities of a defect that experts gave in thirds; one cell in seven lies between "
    "functional and defective. Photographs by other cameras, of other kinds of modules or of whole modules were not "
    "learned from. The answer is no inspection of a module, and should not be the only ground for a decision on one.",
    citation="""@article{deitsch2019automatic,
  title = {Automatic classification of defective photovoltaic module cells in electroluminescence images},
  author = {Deitsch, Sergiu and Christlein, Vincent and Berger, Stephan and Buerhop-Lutz, Claudia and Maier, Andreas
            and Gallwitz, Florian and Riess, Christian},
  journal = {Solar Energy},
  volume = {185},
  pages = {455--468},
  year = {2019}
}""",
)

# By the name that `--data` takes.
ABOUT = {"elpv": _ELPV, "elpv-levels": _ELPV}
