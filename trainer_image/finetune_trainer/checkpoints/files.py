"""A checkpoint as a folder: tensors as safetensors, the rest as JSON, and a manifest that comes last. Nothing is
pickled: a checkpoint comes back from a bucket that others may write to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune_trainer.digests import sha256_of
from finetune_trainer.engines.average import AverageState
from finetune_trainer.engines.base import EngineState
from finetune_trainer.engines.loss_scale import ScaleState

FORMAT = 4
MANIFEST = "manifest.json"
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
AVERAGE, BEST = "average.safetensors", "best.safetensors"
ALWAYS = frozenset((WEIGHTS, OPTIMIZER, STATE))


class BadCheckpoint(ValueError):
    """It is incomplete, damaged, or of another run."""


@dataclass(frozen=True)
class Best:
    """The weights that a duty found better than all before."""

    step: int
    weights: dict[str, Tensor]
    """CPU tensors; the averaged ones where there are any."""


@dataclass(frozen=True)
class TrainingState:
    """All that a training needs to go on bit for bit: everything drawn is a function of the step."""

    step: int
    """Optimizer steps done."""
    engine: EngineState
    losses: tuple[float, ...]
    """Loss of each step so far."""
    learning_rates: tuple[float, ...]
    """Of each step so far."""
    digests: dict[str, str]
    """What it was trained on. A training on other things must not go on from here."""
    duties: tuple[dict[str, Any], ...] = ()
    """As training.duties.Roster.state gives them."""
    best: Best | None = None
    ended: bool = False
    """A duty said that more steps would not help."""
    skipped: int = 0
    """Steps so far that changed nothing, because their loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    """Of these, the last ones."""

    @property
    def size(self) -> int:
        """Bytes of all tensors: a checkpoint is hardly larger."""
        return sum(tensor.nbytes for tensors in self.tensors.values() for tensor in tensors.values())

    @property
    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """File → its tensors."""
        files = {WEIGHTS: self.engine.weights, OPTIMIZER: self.engine.optimizer}
        if self.engine.average is not None:
            files[AVERAGE] = self.engine.average.weights
        if self.best is not None:
            files[BEST] = self.best.weights
        return files


def write_checkpoint(folder: Path, state: TrainingState, run_digest: str, attempt: str) -> None:
    """Writes `state` into the new folder `folder`, the manifest last."""
    folder.mkdir(parents=True)
    for name, tensors in state.tensors.items():
        save_file(tensors, folder / name)
    rest = {
        "step": state.step,
        "losses": state.losses,
        "learningRates": state.learning_rates,
        "digests": state.digests,
        "duties": state.duties,
        "ended": state.ended,
        "skipped": state.skipped,
        "skippedInARow": state.skipped_in_a_row,
        "lossScale": asdict(state.engine.loss_scale) if state.engine.loss_scale is not None else None,
        "averageUpdates": state.engine.average.updates if state.engine.average is not None else None,
        "bestStep": state.best.step if state.best is not None else None,
    }
    (folder / STATE).write_text(json.dumps(rest))
    files = {
        name: {"sha256": sha256_of(folder / name), "size": (folder / name).stat().st_size}
        for name in (*state.tensors, STATE)
    }
    manifest = {"format": FORMAT, "step": state.step, "run": run_digest, "attempt": attempt, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def read_manifest(data: bytes, run_digest: str) -> dict[str, Any]:
    """The manifest in `data`. Raises BadCheckpoint when it is no manifest of this run."""
    try:
        manifest: dict[str, Any] = json.loads(data)
        ours = manifest["format"] == FORMAT and manifest["run"] == run_digest
        complete = set(manifest["files"]) - {AVERAGE, BEST} == ALWAYS
    except (ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint(f"no manifest: {error}") from error
    if not (ours and complete):
        raise BadCheckpoint("the manifest is of another run or format")
    return manifest


def read_checkpoint(folder: Path, run_digest: str) -> TrainingState:
    """What `write_checkpoint` wrote. Raises BadCheckpoint."""
    try:
        manifest = read_manifest((folder / MANIFEST).read_bytes(), run_digest)
        for name, entry in manifest["files"].items():
            if sha256_of(folder / name) != entry["sha256"]:
                raise BadCheckpoint(f"{name} is not what the manifest says")
    except OSError as error:
        raise BadCheckpoint(str(error)) from error
    rest = json.loads((folder / STATE).read_text())
    average = best = None
    if AVERAGE in manifest["files"]:
        average = AverageState(load_file(folder / AVERAGE), rest["averageUpdates"])
    if BEST in manifest["files"]:
        best = Best(rest["bestStep"], load_file(folder / BEST))
    scale = ScaleState(**rest["lossScale"]) if rest["lossScale"] is not None else None
    engine = EngineState(load_file(folder / WEIGHTS), load_file(folder / OPTIMIZER), average, scale)
    losses, rates, duties = tuple(rest["losses"]), tuple(rest["learningRates"]), tuple(rest["duties"])
    skips = rest["skipped"], rest["skippedInARow"]
    return TrainingState(rest["step"], engine, losses, rates, rest["digests"], duties, best, rest["ended"], *skips)
