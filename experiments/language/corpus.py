"""Text for the language models: files of folders, split by file, as tokens of a byte-level BPE in one file."""

import gzip
import hashlib
import random
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patnet import InputError
from patnet.files import atomic_write
from patnet.models import read_tensors

from .protocol import Budget

SUFFIXES = (".txt", ".rst", ".md", ".yaml")
SKIPPED = {"translations", "cats.txt"}  # the kernel's folder of other languages, the Brown corpus' list of its files
HELD_OUT = 0.05  # share of the files for validation, and for the test
VOCABULARY = 2048
END = "<|end|>"  # after each file


@dataclass(frozen=True)
class Corpus:
    """Tokens of texts by name, and the tokeniser.

    Args:
        texts: Tokens by name: `train`, `validation`, and those of tests.
        token_bytes: Length of each token in bytes; 0 for the end of a file.
        tokeniser: The tokeniser as JSON of the library tokenizers.
    """

    texts: dict[str, Tensor]
    token_bytes: Tensor
    tokeniser: str


def load(path: Path, make: Callable[..., Any], command: str) -> Any:
    """What `make` makes of the contents of a file.

    Raises:
        InputError: If there is no such file, or it is not one of the command of run.py.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; make it with: python experiments/language/run.py {command}")
    content = read_tensors(path)
    try:
        return make(**content)
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{path}: not a file of run.py {command} ({type(error).__name__})") from error


def build_corpus(out: Path, train: Mapping[str, str], tests: Mapping[str, str]) -> dict[str, int]:
    """Write the tokens of folders' texts; returns the number of bytes of each text.

    Args:
        out: The file.
        train: Folders to train on by name, of whose files a part is held out for validation and for a test each.
        tests: Folders for tests alone, by name.

    Raises:
        InputError: If two texts have one name, a folder has no text, too little to hold some out, or text that is not
            UTF-8.
    """
    names = ["train", "validation", *train, *tests]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{twice[0]}: is the name of another text; give the folder another name")
    seen: set[bytes] = set()
    parts: dict[str, list[str]] = {"train": [], "validation": []}
    for name, folder in train.items():
        texts = read_folder(Path(folder), seen)
        if len(texts) < 3:
            raise InputError(f"{folder}: {len(texts)} different text files; 3 are needed for train, validation, test")
        random.Random(0).shuffle(texts)
        held = max(1, round(HELD_OUT * len(texts)))
        parts[name] = texts[:held]
        parts["validation"] += texts[held : 2 * held]
        parts["train"] += texts[2 * held :]
    parts |= {name: read_folder(Path(folder), seen) for name, folder in tests.items()}
    for texts in parts.values():  # the files of two folders are mixed
        random.Random(0).shuffle(texts)

    from tokenizers import ByteLevelBPETokenizer  # after the check that it is installed

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(parts["train"], VOCABULARY, special_tokens=[END], show_progress=False)
    vocabulary = tokenizer.get_vocab()  # in which the library writes each byte as one character
    lengths = torch.tensor([0 if t == END else len(t) for t in sorted(vocabulary, key=lambda t: vocabulary[t])])
    end, tokens = vocabulary[END], {}
    for name, texts in parts.items():
        ids = [torch.tensor([*encoded.ids, end], dtype=torch.int16) for encoded in tokenizer.encode_batch(texts)]
        tokens[name] = torch.cat(ids)
        if len(tokens[name]) <= Budget.context:
            found = f"{len(tokens[name])} tokens; {Budget.context + 1} are needed"
            raise InputError(f"{name}: a text of {found}: give more text or files")
    with atomic_write(out) as path:
        torch.save(asdict(Corpus(tokens, lengths, tokenizer.to_str())), path)
    return {name: int(lengths[tokens[name].long()].sum()) for name in parts}


def read_folder(folder: Path, seen: set[bytes]) -> list[str]:
    """The texts of a folder without those in `seen`, to which theirs are added, in the order of their paths."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a folder with text files ({', '.join(SUFFIXES)})")
    texts = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not {*path.relative_to(folder).parts} & SKIPPED:
            for text in read_texts(path):
                digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
                if text.strip() and digest not in seen:
                    seen.add(digest)
                    texts.append(text)
    if not texts:
        raise InputError(f"{folder}: no text; text files end in {', '.join(SUFFIXES)}, or in those and .gz")
    return texts


def read_texts(path: Path) -> list[str]:
    """The texts in a file: none if it is no text, several of an R data base; of the Brown corpus without tags.

    Raises:
        InputError: If a text file is not UTF-8, or cannot be read.
    """
    inner = path.with_suffix("") if path.suffix == ".gz" else path
    tagged = re.fullmatch(r"c[a-r]\d\d", path.name)  # of the Brown corpus
    if not (inner.suffix in SUFFIXES or path.suffix == ".rdb" or tagged):
        return []
    try:
        content = path.read_bytes() if inner is path else gzip.decompress(path.read_bytes())
        if path.suffix == ".rdb":
            return list(r_texts(content))
        text = content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}); convert it, or move it out of the folder") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    if tagged:
        words = " ".join(word.rpartition("/")[0] for word in text.split())
        text = re.sub(r" (?=[.,;:?!)])|(?<=\() ", "", words).replace("`` ", '"').replace(" ''", '"')
    return [text]


def r_texts(content: bytes) -> Iterator[str]:
    """The character vectors of an R data base, each as lines of a text.

    An entry is its length in four bytes, and the object, compressed, in which four bytes of flags and four of length
    precede each string.
    """
    while content:
        stream = zlib.decompressobj()
        strings = re.split(rb"\0[\0-\x0f].\t\0\0..", stream.decompress(content[4:]), flags=re.DOTALL)
        yield b"\n".join(strings[1:]).decode()
        content = stream.unused_data
