import shutil
from pathlib import Path

import numpy as np
import pytest

from router_ml import ArtefactError, ComplexityClassifier, registry
from router_ml.registry import FILES, default_path


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(default_path(), tmp_path / "copy"))


def test_a_missing_artefact_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"training\.retrain"):
        ComplexityClassifier.load(tmp_path / "none")


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_by_name(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(ArtefactError, match=f"{name} is damaged"):
        ComplexityClassifier.load(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_by_name(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ArtefactError, match=name):
        ComplexityClassifier.load(copy)


@pytest.mark.parametrize("text", ["", "[]", '{"format": "router_ml/9"}', "\x80\x04pickle"])
def test_a_card_of_another_format_is_refused(copy: Path, text: str) -> None:
    (copy / "card.json").write_text(text)
    with pytest.raises(ArtefactError, match=r"card\.json"):
        ComplexityClassifier.load(copy)


def test_a_half_done_replacement_is_taken_back(copy: Path) -> None:
    copy.rename(copy.with_name(".copy.old"))
    assert ComplexityClassifier.load(copy).version


def test_a_transposed_view_is_read_back_as_it_was(tmp_path: Path) -> None:
    weight = np.arange(6.0, dtype=np.float32).reshape(2, 3).T
    registry.write(tmp_path / "new", card={}, encoder={"v": weight}, head={"w": weight}, tokenizer=b"{}", readme="")
    read = registry.read(tmp_path / "new")
    assert np.array_equal(read.encoder["v"], weight)
    assert np.array_equal(read.head["w"], weight)
