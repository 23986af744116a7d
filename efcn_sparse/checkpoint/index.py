"""The index of a checkpoint in shards: which file holds which tensor, in the form that Hugging Face uses."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from efcn_sparse.checkpoint.atomic import SUFFIX

INDEX = "model.safetensors.index.json"
_OURS = re.compile(rf"model-[0-9a-f]{{8}}-\d{{5}}-of-\d{{5}}\.safetensors({re.escape(SUFFIX)})?")


@dataclass(frozen=True)
class Index:
    """What the index says.

    Attributes:
        weight_map: the file of each tensor.
        shared: names under which a tensor of ``weight_map`` appears again, with the name that it is stored under.
        total_size: bytes of all stored tensors.
    """

    weight_map: dict[str, str]
    shared: dict[str, str]
    total_size: int

    @property
    def files(self) -> list[str]:
        """The shards, sorted."""
        return sorted(set(self.weight_map.values()))

    def as_json(self) -> str:
        metadata: dict[str, object] = {"total_size": self.total_size}
        if self.shared:
            metadata["shared"] = self.shared
        return json.dumps({"metadata": metadata, "weight_map": self.weight_map}, indent=2) + "\n"


def shard_name(save: str, number: int, total: int) -> str:
    """The file of one shard; ``save`` is new for each save, so that none overwrites what an index still names."""
    return f"model-{save}-{number:05d}-of-{total:05d}.safetensors"


def read_index(folder: Path) -> Index:
    """The index of the checkpoint in ``folder``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is none.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"folder must hold {INDEX}, got {folder} without one")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        weight_map, metadata = told["weight_map"], told.get("metadata") or {}
        shared = metadata.get("shared") or {}
        index = Index(dict(weight_map), dict(shared), int(metadata.get("total_size") or 0))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} must be the index of a checkpoint in shards, got {error!r} from it") from error
    for file in index.weight_map.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"{path} must name files of its own folder, got {file!r}")
    for name, stored in index.shared.items():
        if stored not in index.weight_map or name in index.weight_map:
            raise ValueError(f"{path} must name each shared tensor's stored one, got {name!r} for {stored!r}")
    return index


def remove_unnamed(folder: Path) -> None:
    """Delete the shards of earlier and unfinished saves: those that the index of ``folder`` does not name.

    Files that :func:`shard_name` did not name stay.
    """
    try:
        named = set(read_index(folder).files)
    except FileNotFoundError:
        named = set()
    except ValueError:
        return
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in named:
            path.unlink()
