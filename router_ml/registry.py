"""The artefact as a folder: encoder.safetensors, head.safetensors, tokenizer.json, README.md and card.json.

The card states the format and the sha256 of each of the others. Reading checks all of it and runs no code; writing is
all or nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.errors import ArtefactError

FORMAT = "router_ml/2"
CARD = "card.json"
FILES = ("encoder.safetensors", "head.safetensors", "tokenizer.json", "README.md")
_MAX_FILE_BYTES = 512 * 1024 * 1024

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Artefact:
    """What the folder holds, checked: the card, both sets of tensors and the tokenizer's JSON."""

    card: Mapping[str, Any]
    encoder: Tensors
    head: Tensors
    tokenizer: bytes


def default_path() -> Path:
    """The packaged artefact: inside an installed wheel, or models/default of a checkout."""
    package = Path(__file__).parent
    installed = package / "models" / "default"
    return installed if installed.is_dir() else package.parent / "models" / "default"


def read(path: Path) -> Artefact:
    """Raises ArtefactError, naming the file and what is wrong with it, unless every part is whole and of our format."""
    card = _read_card(path)
    for _ in range(3):  # a writer may put a new version in place while we read: begin again if the card has changed
        try:
            files = {name: _read_checked(path / name, card) for name in FILES}
            break
        except ArtefactError:
            latest = _read_card(path)
            if latest == card:
                raise
            card = latest
    else:
        raise ArtefactError(f"{path} was replaced three times while it was read")
    tensors = {name: _tensors(files[name], path / name) for name in FILES if name.endswith(".safetensors")}
    return Artefact(card, tensors["encoder.safetensors"], tensors["head.safetensors"], files["tokenizer.json"])


def write(
    path: Path, *, card: Mapping[str, Any], encoder: Tensors, head: Tensors, tokenizer: bytes, readme: str
) -> None:
    """Put a whole new version at ``path``; what was there stays until the new one is complete and on disk."""
    from safetensors.numpy import save

    files = {
        "encoder.safetensors": save(_rowwise(encoder)),
        "head.safetensors": save(_rowwise(head)),
        "tokenizer.json": tokenizer,
        "README.md": readme.encode(),
    }
    stamped = {
        **card,
        "format": FORMAT,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    files[CARD] = (json.dumps(stamped, indent=2, ensure_ascii=False) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        for name, data in files.items():
            _write_synced(staged / name, data)
        staged.chmod(0o755)
        _sync_folder(staged)
        _swap(staged, path)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _rowwise(tensors: Tensors) -> dict[str, NDArray[Any]]:
    """In C order: safetensors writes the memory as it lies, so a transposed view would come back scrambled."""
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def _swap(staged: Path, path: Path) -> None:
    """Give ``staged`` the name ``path``. A crash between the renames leaves the old version as ``.NAME.old``, which
    ``_read_card`` still finds."""
    old = _old(path)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    staged.rename(path)
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _read_card(path: Path) -> dict[str, Any]:
    if not path.exists() and _old(path).is_dir():  # a writer died between its two renames: take its half step back
        _old(path).rename(path)
    where = path / CARD
    try:
        card = json.loads(where.read_bytes())
    except FileNotFoundError:
        raise ArtefactError(
            f"no artefact at {path}: {CARD} is missing; train one with `python -m training.retrain`"
        ) from None
    except (OSError, ValueError) as exc:
        raise ArtefactError(f"{where} cannot be read: {exc}") from exc
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise ArtefactError(f"{where} is of format {found!r}, this version reads {FORMAT!r}")
    return card


def _read_checked(path: Path, card: Mapping[str, Any]) -> bytes:
    wanted = card.get("sha256", {}).get(path.name)
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ArtefactError(f"{path} has {path.stat().st_size} bytes, more than any artefact of ours")
        data = path.read_bytes()
    except OSError as exc:
        raise ArtefactError(f"{path} cannot be read: {exc.strerror}") from exc
    found = hashlib.sha256(data).hexdigest()
    if found != wanted:
        raise ArtefactError(f"{path} is damaged: its sha256 is {found}, {CARD} says {wanted}")
    return data


def _tensors(data: bytes, path: Path) -> Tensors:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors: Tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as exc:
        raise ArtefactError(f"{path} holds no safetensors: {exc}") from exc
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise ArtefactError(f"{path}: {name} holds NaN or infinity")
    return tensors


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
