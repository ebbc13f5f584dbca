"""Whether a checkpoint is complete: by the list of its files, or by the files themselves where it has no list.

A checkpoint of `DGPOTrainer` holds `dgpo_checkpoint.json`: what run it belongs to (`resuming.py`), and the size and
CRC-32 of every other file. In a checkpoint without it (TRL's own, or an older one) every file is checked according to
its type: JSON must parse, safetensors must be as long as their header says, archives of torch must pass their own
checksums, and no shard may be missing.
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from dgpo.counts import counted
from dgpo.files import loads, write_json_atomic

MANIFEST = "dgpo_checkpoint.json"
SCHEMA = "dgpo.checkpoint/1"

HISTORY_FILE = "reward_history.json"
"""In a checkpoint: statistics of the rewards by prompt, where the advantage keeps them."""
ENTROPY_FILE = "entropy_ctrl_state.json"
"""TRL's, of its adaptive entropy coefficient."""
REFERENCE_FILE = "ref_model.pt"
"""The state dict of the reference model, whole and on the CPU, where `sync_ref_model` moves it."""

MODEL_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "adapter_model.safetensors")
"""One of them is in the output folder of a finished run."""

_STATES = re.compile(
    r"(optimizer|scheduler|scaler)\.(pt|bin)|optimizer_\d+/.*|rng_state(_\d+)?\.pth|"
    + "|".join(re.escape(name) for name in (HISTORY_FILE, ENTROPY_FILE, REFERENCE_FILE))
)
_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
_WEIGHTS = re.compile(
    r"(model|pytorch_model|adapter_model)(\.safetensors|\.bin)(\.index\.json)?|pytorch_model_fsdp(_\d+|\.bin)|global_step\d+"
)
# zlib.crc32 reads a file in pieces of this size, so that large weights are not held in memory
_CHUNK = 1 << 22
_THREADS = 4
"""The checksum of a large buffer is computed without the interpreter's lock."""


def checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The folders `checkpoint-N` of a run, the newest (largest N) first."""
    if not os.path.isdir(folder):
        return []
    found = [path for path in Path(folder).iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=update_of, reverse=True)


def update_of(checkpoint: Path) -> int:
    """The N of `checkpoint-N`."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def seal(checkpoint: Path, run: dict[str, Any]) -> None:
    """Flush every file of a checkpoint to the disk, and write the list of them; the last thing that is written.

    Raises:
        OSError: something cannot be written.
    """
    paths = list(_files(checkpoint))
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = list(pool.map(_flushed, paths))
    files = {
        path.relative_to(checkpoint).as_posix(): {"size": path.stat().st_size, "crc32": crc}
        for path, crc in zip(paths, sums, strict=True)
    }
    write_json_atomic(checkpoint / MANIFEST, {"schema": SCHEMA, "run": run, "files": files})
    # the folders too: a new file's name is lost in a crash if only its content was flushed
    for folder in [checkpoint, *(path for path in checkpoint.rglob("*") if path.is_dir())]:
        flush_folder(folder)


def flush_folder(folder: Path) -> None:
    """Flush the entries of a folder, names and not contents, to the disk."""
    if os.name == "nt":
        return  # folders cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(checkpoint: str | os.PathLike[str]) -> str | None:
    """What is wrong with the files of a checkpoint, in a few words; None if it is whole.

    A missing state is not damage: `resuming.py` decides whether the run needs it.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return "no such folder"
    try:
        found = _by_list(folder) if (folder / MANIFEST).exists() else _by_kind(folder)
    except OSError as error:
        return f"{error.filename or 'a file'} cannot be read ({error.strerror})"
    return found or _state(folder) or _weights(folder)


def run_of(checkpoint: Path) -> dict[str, Any] | None:
    """The run that wrote the checkpoint, as recorded there; None for one without `dgpo_checkpoint.json`."""
    file = checkpoint / MANIFEST
    return dict(loads(file.read_text(encoding="utf-8"))["run"]) if file.exists() else None


def _by_list(folder: Path) -> str | None:
    try:
        listed = loads((folder / MANIFEST).read_bytes())["files"].items()
        sums = {str(name): (int(of["size"]), int(of["crc32"])) for name, of in listed}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    # sizes first: a truncated file is found without reading anything
    there = [name for name in sums if (folder / name).is_file()]
    for name, (size, _) in sums.items():
        if name in there:
            if (found := (folder / name).stat().st_size) != size:
                return f"{name} has {counted(found, 'byte')} of {size:,}"
        # a state may be missing on purpose (`resume_allow_missing`)
        elif not _STATES.fullmatch(name):
            return f"{name} is missing"
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, crc in zip(there, pool.map(_crc, [folder / name for name in there]), strict=True):
            if crc != sums[name][1]:
                return (
                    f"{name} was changed after it was written (its checksum differs; if that is intended, delete the "
                    f"{MANIFEST} beside it)"
                )
    return None


def _by_kind(folder: Path) -> str | None:
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            try:
                content = loads(path.read_bytes())
            except ValueError:
                return f"{name} is damaged (not JSON)"
            if name.endswith(".index.json"):
                shards = set(content.get("weight_map", {}).values()) if isinstance(content, dict) else set()
                if missing := sorted(shard for shard in shards if not (path.parent / shard).is_file()):
                    return f"{missing[0]} is missing, which {name} lists"
        elif path.suffix == ".safetensors":
            try:
                # opening checks the length against the header
                with safe_open(path, framework="pt"):
                    pass
            except SafetensorError as error:
                return f"{name} is damaged ({error})"
        elif path.suffix in (".pt", ".pth", ".bin") and (found := _archive(path)):
            return f"{name} is damaged ({found})"
    # torch.distributed.checkpoint writes this file last, after all shards
    for metadata in ("pytorch_model_fsdp_*", "optimizer_*"):
        for part in folder.glob(metadata):
            if part.is_dir() and not (part / ".metadata").is_file():
                return f"{part.name}/.metadata is missing"
    return None


def _archive(path: Path) -> str | None:
    try:
        # torch.save writes a zip archive, with a CRC-32 of each member
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError):
        return "not an archive of torch, or cut off"
    return None if damaged is None else f"the checksum of {damaged} differs"


def _state(folder: Path) -> str | None:
    """Whether the state of the trainer is there, and is that of the update in the folder's name."""
    file = folder / TRAINER_STATE_NAME
    if not file.is_file():
        return f"{TRAINER_STATE_NAME} is missing"
    try:
        step = loads(file.read_bytes())["global_step"]
    except (ValueError, KeyError, TypeError):
        return f"{TRAINER_STATE_NAME} is damaged"
    match = _NAME.fullmatch(folder.name)
    return f"{TRAINER_STATE_NAME} is of update {step}" if match and step != int(match[1]) else None


def _weights(folder: Path) -> str | None:
    names = [path.name for path in folder.iterdir()]
    # several adapters are saved in a folder each
    names += [path.name for path in folder.glob("*/adapter_model.*")]
    return None if any(_WEIGHTS.fullmatch(name) for name in names) else "the weights of the model are missing"


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST)


def _flushed(path: Path) -> int:
    crc = _crc(path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return crc


def _crc(path: Path) -> int:
    value = 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value
