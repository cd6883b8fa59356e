"""Descriptions of the built-in data sets, for model cards."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AboutData:
    """What a model card says of a data set: `text` and `limits` in sentences, `licence` as the Hub calls it, BibTeX."""

    title: str
    text: str
    licence: str
    limits: str
    citation: str


_ELPV = AboutData(
    title="ELPV",
    text="2 624 electroluminescence images of solar cells from 44 modules, 300x300 px, 8-bit grey, from the package "
    "elpv-dataset. 1 968 solar cells are for training and 656 for the test, in a split that is fixed in patnet. "
    "Nothing records which module a solar cell came from, so solar cells of one module may be in both parts.",
    licence="cc-by-nc-sa-4.0",
    limits="The labels are probabilities of a defect that experts gave in thirds; 401 of the 2 624 solar cells (15 %) "
    "are doubtful, 1/3 or 2/3. Images by other cameras, of other types of modules or of complete modules are not in "
    "the training data. The output is no inspection of a module, and should not be the only basis for a decision.",
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
