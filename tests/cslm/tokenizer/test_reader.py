"""A recogniser learns what foreign units say: here, each letter has units of its own."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cslm.tokenizer.frame_file import FrameFile
from cslm.tokenizer.reader import UnitReader
from cslm.tokenizer.reader_training import ReaderRecipe, hide, train_reader

LETTERS = "zz"
"""A language without phones, so that its labels are letters."""
SILENT = 9


def spoken(text: str, rng: random.Random) -> npt.NDArray[np.int32]:
    """Letter i as two to four units of 3i to 3i + 2, with silence between."""
    letters = [[3 * "abc".index(letter) + rng.randrange(3)] * rng.randint(2, 4) for letter in text]
    return np.array([unit for run in letters for unit in (*run, SILENT)], np.int32)


def corpus(path: Path, texts: list[str]) -> FrameFile:
    rng = random.Random(1)
    units = FrameFile(path, np.int32)
    assert not units.write([(spoken(text, rng), text, LETTERS) for text in texts], "abc").total()
    return units


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> UnitReader:
    folder, rng = tmp_path_factory.mktemp("units"), random.Random(2)
    units = corpus(folder / "units", ["".join(rng.choices("abc", k=rng.randint(2, 6))) for _ in range(60)])
    torch.manual_seed(1)
    trained = UnitReader(10, 32, ["a", "b", "c"])
    train_reader(trained, units, ReaderRecipe(200, 5e-3, 20, 1), folder / "state.pt", lambda step, loss: None)
    return trained


def test_it_reads_units_that_it_has_not_seen_in_this_order(reader: UnitReader) -> None:
    texts, rng = ["abccba", "cab", "bb"], random.Random(3)
    together = reader.log_probs([spoken(text, rng) for text in texts])
    assert [reader.transcribe(each) for each in together] == [list(text) for text in texts]
    assert all(np.allclose(np.exp(each).sum(-1), 1, atol=1e-5) for each in together)


def test_saved_and_opened_it_reads_the_same(reader: UnitReader, tmp_path: Path) -> None:
    reader.save(tmp_path)
    frames = [spoken("abc", random.Random(4))]
    assert np.array_equal(UnitReader.load(tmp_path).log_probs(frames)[0], reader.log_probs(frames)[0])


def test_with_more_labels_it_reads_the_old_ones_as_before(reader: UnitReader) -> None:
    extended = reader.with_labels("abd").eval()
    assert extended.labels == ["a", "b", "c", "d"]
    frames = [spoken("cab", random.Random(5))]
    assert extended.transcribe(extended.log_probs(frames)[0]) == ["c", "a", "b"]


def test_killed_it_continues_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cslm.loop.CHECKPOINT_STEPS", 3)
    units = corpus(tmp_path / "units", ["ab", "bc", "cab", "acb"] * 3)
    recipe = ReaderRecipe(steps=8, learning_rate=5e-3, batch_seconds=2, seed=1)

    def fresh() -> UnitReader:
        torch.manual_seed(7)
        return UnitReader(10, 16, ["a", "b", "c"])

    def die(step: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    undisturbed, continued = fresh(), fresh()
    train_reader(undisturbed, units, recipe, tmp_path / "a.pt", lambda step, loss: None)
    with pytest.raises(KeyboardInterrupt):
        train_reader(continued, units, recipe, tmp_path / "b.pt", die)
    steps: list[int] = []
    train_reader(continued, units, recipe, tmp_path / "b.pt", lambda step, loss: steps.append(step))
    assert steps == [4, 5, 6, 7, 8]
    for a, b in zip(undisturbed.parameters(), continued.parameters(), strict=True):
        assert torch.equal(a, b)


def test_about_a_tenth_of_the_units_is_hidden() -> None:
    rng = random.Random(1)
    hidden = [(hide(torch.zeros(100, dtype=torch.long), 9, rng) == 9).float().mean() for _ in range(50)]
    assert 0.06 < np.mean(hidden) < 0.12
