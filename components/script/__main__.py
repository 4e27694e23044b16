"""Expand the intents of a corpus into the lines to speak, the dialogues and the translations.

Run:  python -m components.script --intents sample/intents --out data/sample
      python -m components.script --intents sample/intents --translated sample/es --out data/spanish

Writes `lines.tsv` (what `components.synthesize` speaks), `dialogues.tsv` and `translations.tsv`; with
`--translated` only what the language of that folder has a part in, to be added to the corpus that is there.
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
ADDED = {"es": Casting(voices={"es": ["ef_dora", "em_alex"]}, heldout={"es": "em_santa"}, speed=(0.9, 1.2))}
"""Who speaks a language that is added."""


def main(
    intents: Annotated[Path, typer.Option(help="folder of intents (*.yaml)")],
    out: Annotated[Path, typer.Option(help="folder for lines.tsv, dialogues.tsv and translations.tsv")],
    translated: Annotated[
        Path | None, typer.Option(help="folder named as a language, with intents in it: only what that adds")
    ] = None,
    seed: Annotated[int, typer.Option(help="draws splits, voices and speeds")] = 1,
) -> None:
    """Expand intents into lines to speak, dialogues and translations."""
    new = translated.name if translated else ""
    if new and new not in ADDED:
        raise SystemExit(
            f"{translated}: no voices are named for {new!r}; there are some for: {', '.join(ADDED)}"
        )
    try:
        cells = read_cells(intents, seed, translated)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    lines = spoken = cast(cells, CASTING, seed)
    if new:
        cells = [cell for cell in cells if new in cell.question]
        if not cells:
            raise SystemExit(f"{translated}: none of the intents of {intents} is there")
        lines = cast(cells, ADDED[new], seed)
        spoken = [*spoken, *lines]
    out.mkdir(parents=True, exist_ok=True)
    write_tsv(out / "lines.tsv", map(dataclasses.asdict, lines))
    for name, rows in {"dialogues": dialogues(cells, spoken), "translations": translations(cells)}.items():
        write_tsv(out / f"{name}.tsv", (row for row in rows if not new or new in row.values()))
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
