"""Turn the accepted speech of one language into merged units and durations.

Run:  python -m components.tokenize --language en

Reads `work/accepted` and `work/tokenizer`, writes `work/units/LANGUAGE`: a shard of units for each shard with
speech in this language. Training speech is there once more at each of `tokenize.speeds`. `tokenize.engine` says
who encodes: this process, or workers of Ray. A stage that ended early goes on with the shards that are not
finished, whichever engine began.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer

from components.checkpoints import checkpoints_of
from components.settings import Tokenize
from components.stage import GRANTED, Stage, StageFailed
from components.tokenize import shards
from components.tokenize.on_ray import EngineFailed, encode_on_ray
from components.tokenize.shards import Progress, Recipe, ShardFailed, encode_shard, has_language
from cslm.tokenizer import open_tokenizer

UTTERANCES, TOKENIZER = Path("work/accepted/utterances"), Path("work/tokenizer")


def main(language: Annotated[str, typer.Option(help="language whose utterances to encode")]) -> None:
    """Encode the speech of one language."""
    stage = Stage(f"tokenize/{language}")
    with checkpoints_of(stage) as finished, stage:
        settings = stage.settings.tokenize
        recipe = recipe_of(language, settings)
        try:
            speech = shards_of(language)
            speed = encode(recipe, speech, finished, settings.engine)
        except (ShardFailed, EngineFailed) as error:
            raise StageFailed(str(error)) from error
        with stage.output(f"work/units/{language}") as folder:
            for shard in speech:
                shutil.copyfile(finished / shard.name, folder / shard.name)
        stage.log_metrics(measure(Path(f"work/units/{language}")) | speed)


def recipe_of(language: str, settings: Tokenize) -> Recipe:
    """How to encode; on a GPU if the stage's container has one, and not without a word on the processor."""
    provider = settings.provider or ("cuda" if os.environ.get(GRANTED) else None)
    return Recipe(language, tuple(settings.speeds), settings.batch_seconds, provider)


def shards_of(language: str) -> list[Path]:
    """Shards of accepted speech that have utterances in a language.

    Raises:
        StageFailed: there are none.
        ShardFailed: one cannot be read.
    """
    found = [shard for shard in sorted(UTTERANCES.glob("*.parquet")) if has_language(shard, language)]
    if not found:
        raise StageFailed(
            f"no accepted utterance is in {language!r}; correct `languages` in params.yaml, or see "
            "report/validation for why all were refused"
        )
    return found


def encode(recipe: Recipe, speech: Sequence[Path], finished: Path, engine: str) -> dict[str, float]:
    """Write the units of those shards that are not `finished` yet; the speed at which that was done.

    Raises:
        ShardFailed: a shard cannot be encoded.
        EngineFailed: Ray or the tokenizer does not do its work.
    """
    shards.clear(finished)
    todo = [shard for shard in speech if not (finished / shard.name).exists()]
    whole, utterances, seconds, started = len(speech) - len(todo), 0, 0.0, time.monotonic()
    if whole:
        print(f"{whole} of {len(speech)} shards are finished already", flush=True)
    engines = {"local": encode_here, "ray": encode_on_ray}
    for done in engines[engine](TOKENIZER, recipe, todo, finished) if todo else ():
        whole, utterances, seconds = whole + done.shards, utterances + done.utterances, seconds + done.seconds
        told = f"{whole}/{len(speech)} shards, {utterances} utterances, {seconds / 3600:.2f} h"
        print(f"progress: {told}", flush=True)
    return {"real_time_factor": (time.monotonic() - started) / seconds} if seconds else {}


def encode_here(tokenizer: Path, recipe: Recipe, todo: Sequence[Path], folder: Path) -> Iterator[Progress]:
    """Write the units of all shards to `folder`, one after the other, on all cores.

    Raises:
        ShardFailed: one cannot be encoded; those that are finished stay.
        EngineFailed: the tokenizer does not work here.
    """
    try:
        opened = open_tokenizer(tokenizer, recipe.provider, recipe.batch_seconds)
    except (ValueError, RuntimeError) as error:
        raise EngineFailed(str(error)) from error
    for shard in todo:
        yield from encode_shard(opened, recipe, shard, folder)


def measure(folder: Path) -> dict[str, Any]:
    """What the units of a language come to, at every speed."""
    utterances = units = frames = 0
    seconds, used = 0.0, set[int]()
    for shard in sorted(folder.glob("*.parquet")):
        table = pq.read_table(shard, columns=["duration_s", "units", "durations"])
        spoken = pc.list_flatten(table["units"])
        utterances, units = utterances + len(table), units + len(spoken)
        seconds += pc.sum(table["duration_s"]).as_py()
        frames += pc.sum(pc.list_flatten(table["durations"])).as_py()
        used.update(pc.unique(spoken).to_pylist())
    return {
        "utterances": utterances,
        "hours": seconds / 3600,
        "units_per_second": units / seconds,
        "frames_per_unit": frames / units,
        "codes_used": len(used) / open_tokenizer(TOKENIZER).units,
    }


if __name__ == "__main__":
    main.__doc__ = __doc__  # what --help shows
    typer.run(main)
