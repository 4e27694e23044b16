"""Expand the intents of a corpus into the lines to speak, the dialogues and the translations.

Run:  python -m components.script --intents sample/intents --out data/sample

Writes `lines.tsv` (what `components.synthesize` speaks), `dialogues.tsv` and `translations.tsv`.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Mapping
from itertools import permutations, product
from pathlib import Path
from typing import Annotated, Any

import typer

from cslm.script import Casting, Cell, Line, cast, read_cells

CASTING = Casting(
    voices={
        "en": [
            *("af_heart", "af_bella", "af_nova", "af_sarah", "bf_emma"),
            *("am_michael", "am_fenrir", "am_puck", "am_adam", "bm_george"),
        ],
        "zh": ["zf_xiaobei", "zf_xiaoni", "zf_xiaoxiao", "zm_yunjian", "zm_yunxi", "zm_yunxia", "zm_yunyang"],
    },
    heldout={"en": "af_kore", "zh": "zf_xiaoyi"},
    speed=(0.9, 1.2),
)


def main(
    intents: Annotated[Path, typer.Option(help="folder of intents (*.yaml)")],
    out: Annotated[Path, typer.Option(help="folder for lines.tsv, dialogues.tsv and translations.tsv")],
    seed: Annotated[int, typer.Option(help="draws splits, voices and speeds")] = 1,
) -> None:
    """Expand intents into lines to speak, dialogues and translations."""
    cells = read_cells(intents, seed)
    lines = cast(cells, CASTING, seed)
    out.mkdir(parents=True, exist_ok=True)
    write_tsv(out / "lines.tsv", map(dataclasses.asdict, lines))
    write_tsv(out / "dialogues.tsv", dialogues(cells, lines))
    write_tsv(out / "translations.tsv", translations(cells))
    print(f"{len(cells)} questions of {len({c.fact for c in cells})} facts; {len(lines)} lines to speak")


def dialogues(cells: Iterable[Cell], lines: Iterable[Line]) -> Iterable[dict[str, Any]]:
    """Every question with its answer, for each pair of languages; the speech of both by utterance id."""
    spoken = {line.id: line for line in lines}
    for cell in cells:
        for asked, answered in product(cell.question, repeat=2):
            for split in (cell.split, "heldout_voice"):
                question = f"{cell.id}-q-{asked}" + ("-heldout" if split == "heldout_voice" else "")
                if question in spoken:
                    yield {
                        "id": f"{question}-to-{answered}",
                        "split": split,
                        "question_language": asked,
                        "question": cell.question[asked],
                        "question_speech": question,
                        "answer_language": answered,
                        "answer": cell.answer[answered],
                        "answer_speech": f"{cell.fact}-a-{answered}",
                    }


def translations(cells: Iterable[Cell]) -> Iterable[dict[str, Any]]:
    """Questions and answers between each pair of languages; an answer is training text if its fact is."""
    cells = list(cells)
    trained = {cell.fact for cell in cells if cell.split == "train"}
    seen: set[str] = set()
    for cell in cells:
        texts: list[tuple[str, str, Mapping[str, str]]] = [(f"{cell.id}-q", cell.split, cell.question)]
        if cell.fact not in seen:
            seen.add(cell.fact)
            split = "train" if cell.fact in trained else cell.split
            texts.append((f"{cell.fact}-a", split, cell.answer))
        for (name, split, text), (source, target) in product(texts, permutations(cell.question, 2)):
            yield {
                "id": f"{name}-{source}-{target}",
                "split": split,
                "source_language": source,
                "source": text[source],
                "target_language": target,
                "target": text[target],
            }


def write_tsv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Tab-separated UTF-8 with a header line, whole or not at all."""
    rows = list(rows)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.rename(path)


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
