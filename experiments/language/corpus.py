"""Text for the language models: files of folders, split by file, as tokens of a byte-level BPE in one file."""

import gzip
import hashlib
import random
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from patnet import InputError
from patnet.errors import require
from patnet.files import atomic_write

SUFFIXES = (".txt", ".rst", ".md", ".yaml")
SKIPPED = {"translations", "cats.txt"}  # the kernel's folder of other languages, the Brown corpus' list of its files
BROWN = re.compile(r"c[a-r]\d\d")
HELD_OUT = 0.05  # share of the files for validation, and for the test
END = "<|end|>"  # after each file


@dataclass(frozen=True)
class Corpus:
    """Tokens of texts by name, `train`, `validation` and those of tests, and the tokeniser.

    Args:
        texts: Tokens by name.
        token_bytes: Length of each token in bytes; 0 for the end of a file.
        tokeniser: The tokeniser as JSON of the library tokenizers.
    """

    texts: dict[str, Tensor]
    token_bytes: Tensor
    tokeniser: str

    @property
    def tests(self) -> list[str]:
        """Names of the texts for tests."""
        return [name for name in self.texts if name not in ("train", "validation")]


def load_corpus(path: Path) -> Corpus:
    """Read the file of `build_corpus`.

    Raises:
        InputError: If there is no such file or it is not one of a corpus.
    """
    try:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        tokens = {name.removeprefix("text."): a for name, a in arrays.items() if name.startswith("text.")}
        texts = {name: torch.from_numpy(a.astype(np.int16)) for name, a in tokens.items()}
        return Corpus(texts, torch.from_numpy(arrays["token_bytes"]), str(arrays["tokeniser"]))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; make it with: python experiments/language/lm.py corpus") from error
    except (OSError, ValueError, KeyError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a corpus of lm.py corpus ({error})") from error


def build_corpus(
    out: Path, train: Mapping[str, Path], others: Mapping[str, Path], vocab_size: int = 2048, seed: int = 0
) -> dict[str, int]:
    """Write the tokens of folders' texts; returns the number of bytes of each text.

    Args:
        out: The file.
        train: Folders to train on by name, of whose files a part is held out for validation and for a test each.
        others: Folders for tests alone, by name.
        vocab_size: Number of tokens, at most 32768.
        seed: Random seed of the split.

    Raises:
        InputError: If a folder has no text, too few files to hold some out, or text that is not UTF-8.
    """
    require(["tokenizers"], "hub", "lm.py corpus")
    from tokenizers import ByteLevelBPETokenizer

    seen: set[bytes] = set()
    files = {name: read_folder(folder, seen) for name, folder in {**train, **others}.items()}
    parts: dict[str, list[str]] = {"train": [], "validation": []}
    for name in train:
        texts = files[name]
        random.Random(seed).shuffle(texts)
        held = max(1, round(HELD_OUT * len(texts)))
        if len(texts) < 3:
            raise InputError(
                f"{train[name]}: {len(texts)} different text files; 3 are needed for train, validation, test"
            )
        parts[name], validation, rest = texts[:held], texts[held : 2 * held], texts[2 * held :]
        parts["validation"] += validation
        parts["train"] += rest
    parts |= {name: files[name] for name in others}
    for texts in parts.values():  # the files of two folders are mixed
        random.Random(seed).shuffle(texts)

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(parts["train"], vocab_size, special_tokens=[END], show_progress=False)
    vocabulary = tokenizer.get_vocab()
    lengths = np.zeros(len(vocabulary), np.uint8)
    for token, i in vocabulary.items():
        lengths[i] = len(token) if token != END else 0  # the library writes each byte as one character
    arrays = {"token_bytes": lengths, "tokeniser": np.array(tokenizer.to_str())}
    for name, texts in parts.items():
        ids = [np.array([*encoded.ids, 0], np.uint16) for encoded in tokenizer.encode_batch(texts)]
        arrays[f"text.{name}"] = np.concatenate(ids)
    with atomic_write(out) as path, path.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return {name: int(lengths[arrays[f"text.{name}"]].sum(dtype=np.int64)) for name in parts}


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


def read_texts(path: Path) -> Iterator[str]:
    """The texts in a file: none if it is no text, several of an R data base; of the Brown corpus without tags.

    Raises:
        InputError: If a text file is not UTF-8.
    """
    if path.suffix == ".rdb":
        yield from r_texts(path)
        return
    inner = path.with_suffix("") if path.suffix == ".gz" else path
    tagged = BROWN.fullmatch(path.name)
    if inner.suffix not in SUFFIXES and not tagged:
        return
    try:
        content = path.read_bytes() if inner is path else gzip.decompress(path.read_bytes())
        text = content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}); convert it, or move it out of the folder") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    if tagged:
        words = " ".join(word.rpartition("/")[0] for word in text.split())
        text = re.sub(r" (?=[.,;:?!)])|(?<=\() ", "", words).replace("`` ", '"').replace(" ''", '"')
    yield text


def r_texts(path: Path) -> Iterator[str]:
    """The character vectors of an R data base, each as lines of a text.

    An entry is its length in four bytes, and the object, compressed, in which four bytes of flags and four of length
    precede each string.
    """
    content = path.read_bytes()
    while content:
        stream = zlib.decompressobj()
        strings = re.split(rb"\0[\0-\x0f].\t\0\0..", stream.decompress(content[4:]), flags=re.DOTALL)
        yield b"\n".join(strings[1:]).decode()
        content = stream.unused_data
