"""Written corpora as they are published: sentence pairs, and conversations. There is no speech in them.

Sentence pairs are two files with as many lines, `NAME.en` and `NAME.zh`, wherever they lie (WMT:
statmt.org/wmt17). A name that tells its languages (`UNv1.0.en-zh.en`) has no others, such as `.ids`.
Conversations are `*.jsonl` or `*.parquet` with `conversations`, a list of
`{"from": "human" or "gpt", "value": ...}` (ShareGPT's form; Infinity-Instruct:
huggingface.co/datasets/BAAI/Infinity-Instruct). Of a conversation the first question and its answer are read,
as a dialogue has one of both; `langdetect` or `language` tells its language.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cslm.importers.found import BadCorpus, Defaults, Found, Refused, broken, language_code
from cslm.importers.paths import BadPath, inside

LANGUAGE_FILE = re.compile(r"\.[a-z]{2,3}")
LANGUAGES_TOLD = re.compile(r"\.[a-z]{2,3}-[a-z]{2,3}")
LANGUAGE_KEYS = ("langdetect", "language")
CONVERSATIONS = ("*.jsonl", "*.parquet")
ROWS = 1024
Row = dict[str, str]


def read(root: Path, defaults: Defaults) -> Iterator[Found | Refused]:
    """No utterances; what is written is in `translations` and `dialogues`.

    Raises:
        BadCorpus: neither sentence pairs nor conversations, nor a table of this project.
    """
    tables = [root / "translations.tsv", root / "dialogues.tsv"]
    if not (_pairs(root) or _files(root) or any(map(Path.exists, tables))):
        raise BadCorpus(f"{root}: no NAME.en beside a NAME.zh, no *.jsonl and no *.parquet there")
    yield from ()


def translations(root: Path, defaults: Defaults, prefix: str) -> Iterator[Row | Refused]:
    """Stream the sentence pairs, in both directions; pairs with an empty side are refused.

    Raises:
        BadCorpus: one file of a pair has more lines than the other, so nobody knows what belongs together.
    """
    for first, second in _pairs(root):
        name = str(first.relative_to(root).with_suffix(""))
        try:
            files = [inside(root, str(path.relative_to(root))) for path in (first, second)]
        except BadPath as error:
            yield Refused("", name, str(error), "translations")
            continue
        languages = [path.suffix[1:] for path in files]
        for number, lines in enumerate(itertools.zip_longest(*map(_lines, files)), 1):
            if None in lines:
                raise BadCorpus(
                    f"{files[lines.index(None)]} ends before line {number}, the other file does not"
                )
            place = f"{name}:{number}"
            if not all(lines) or "\ufffd" in "".join(lines):
                yield Refused("", place, "an empty side, or not valid UTF-8", "translations")
                continue
            for source, target in ((0, 1), (1, 0)):
                yield {
                    "id": f"{prefix}{name.replace('/', '-')}-{number}-{languages[source]}",
                    "split": defaults.split,
                    "source_language": languages[source],
                    "source": lines[source],
                    "target_language": languages[target],
                    "target": lines[target],
                }


def dialogues(root: Path, defaults: Defaults, prefix: str) -> Iterator[Row | Refused]:
    """Stream the first question and answer of each conversation.

    Raises:
        BadCorpus: a Parquet file is broken, or has no column `conversations`.
    """
    for path in _files(root):
        name = str(path.relative_to(root))
        try:
            records = _parquet(inside(root, name)) if path.suffix == ".parquet" else _json(inside(root, name))
            for number, record in enumerate(records, 1):
                yield _dialogue(record, f"{name}:{number}", defaults, prefix)
        except BadPath as error:
            yield Refused("", name, str(error), "dialogues")


def _dialogue(record: Any, place: str, defaults: Defaults, prefix: str) -> Row | Refused:
    try:
        turns = [
            (turn["from"], turn["value"].replace("\r\n", "\n").strip()) for turn in record["conversations"]
        ]
        told = next((record[key] for key in LANGUAGE_KEYS if record.get(key)), None)
    except (KeyError, TypeError, AttributeError):
        return Refused("", place, 'no "conversations" with "from" and "value"', "dialogues")
    pairs = itertools.pairwise(turns)
    found = next(((q, a) for (asks, q), (says, a) in pairs if (asks, says) == ("human", "gpt")), ("", ""))
    if not all(found):
        return Refused("", place, "no question of a human with an answer of gpt", "dialogues")
    if not (language := defaults.language or language_code(str(told or ""))):
        return Refused("", place, "no language: set corpora.*.language in params.yaml", "dialogues")
    row = {
        "id": prefix + re.sub(r"[/:]", "-", place),
        "split": defaults.split,
        "question_language": language,
        "question": found[0],
        "question_speech": "",
        "answer_language": language,
        "answer": found[1],
        "answer_speech": "",
    }
    if why := broken("".join(row.values())):
        return Refused("", place, why, "dialogues")
    return row


def _files(root: Path) -> list[Path]:
    return sorted(path for pattern in CONVERSATIONS for path in root.rglob(pattern))


def _pairs(root: Path) -> list[tuple[Path, Path]]:
    """Files that differ in their language alone, as every two of them."""
    languages: defaultdict[Path, list[Path]] = defaultdict(list)
    for path in sorted(root.rglob("*.*")):
        name, language = path.with_suffix(""), path.suffix
        told = LANGUAGES_TOLD.fullmatch(name.suffix)
        is_language = language[1:] in told.group()[1:].split("-") if told else LANGUAGE_FILE.fullmatch(language)
        if is_language and path.is_file():
            languages[name].append(path)
    return [pair for paths in languages.values() for pair in itertools.combinations(paths, 2)]


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for raw in file:
            yield raw.decode("utf-8", "replace").strip()


def _json(path: Path) -> Iterator[Any]:
    for line in _lines(path):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            yield None


def _parquet(path: Path) -> Iterator[Any]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "conversations" not in names:
                raise BadCorpus(f"{path}: no column conversations, but {', '.join(names)}")
            columns = ["conversations", *(key for key in LANGUAGE_KEYS if key in names)]
            for batch in file.iter_batches(ROWS, columns=columns):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise BadCorpus(f"{path}: broken ({error}); fetch it anew, or remove it") from error
