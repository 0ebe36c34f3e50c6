"""Trained weights in the formats that people load. One file in this folder for each format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from finetune_api import TrainingRun
from finetune_api.techniques import TECHNIQUES

from finetune_trainer.errors import ConfigurationError
from finetune_trainer.exports.copied import copied
from finetune_trainer.exports.diffusers_lora import ADAPTER_FILE, diffusers_metadata, diffusers_tensors
from finetune_trainer.exports.hypernetworks import write_hypernetwork
from finetune_trainer.exports.kohya import check_kohya, kohya_metadata, kohya_tensors
from finetune_trainer.exports.pipelines import write_pipeline
from finetune_trainer.exports.plain_parts import plain_parts
from finetune_trainer.exports.single_file import check_single_file, write_single_file
from finetune_trainer.exports.tensors import Dtype, file_name, plain_all, write_tensors
from finetune_trainer.exports.words import Words, file_names, write_words
from finetune_trainer.families.base import Family
from finetune_trainer.methods.base import AdapterWeights, Hypernetwork, NewWords, Result, WholeParts

__all__ = ["check_exports", "copied_weights", "export_weights"]


def export_weights(run: TrainingRun, family: Family, results: Sequence[Result], out_dir: Path) -> list[Path]:
    """Writes what was trained below `out_dir`, in the formats and the number format of output.

    Returns:
        The files, sorted:
        lora/pytorch_lora_weights.safetensors (Diffusers) and lora/<job>.safetensors (Kohya),
        embeddings/<word>.safetensors and .pt (Automatic1111),
        hypernetwork/<job>.pt and .safetensors (Automatic1111),
        pipeline/ for `from_pretrained` (dreamBooth: Diffusers, lora: Merged),
        <job>.safetensors, the whole model (SingleFile).

    Raises:
        ConfigurationError: a format cannot hold what was trained.
    """
    return copied_weights(run, family, results)(out_dir)


def copied_weights(run: TrainingRun, family: Family, results: Sequence[Result]) -> Callable[[Path], list[Path]]:
    """Copies what was trained, as it is now. The function that comes back is `export_weights` for that copy: it may be
    called in another thread while the training goes on.

    Raises:
        ConfigurationError: a format cannot hold what was trained.
    """
    formats = run.output.formats or TECHNIQUES[run.method.name].default_formats
    name, dtype = file_name(run.identity.name), run.output.dtype
    copies = [copied(result) for result in results]
    words: Words = {}
    for result in copies:
        if isinstance(result, NewWords):
            words = {**words, **result.words}
    whole = any(isinstance(result, WholeParts) for result in copies)
    as_pipeline = "Merged" in formats or (whole and "Diffusers" in formats)
    adapter = next((result for result in copies if isinstance(result, AdapterWeights)), None)
    with _fitting(formats):
        parts = plain_parts(family, adapter, dtype) if as_pipeline or "SingleFile" in formats else {}

    def write(out_dir: Path) -> list[Path]:
        with _fitting(formats):
            for result in copies:
                if isinstance(result, AdapterWeights):
                    _write_adapter(family, result, out_dir, name, dtype, formats)
                elif isinstance(result, Hypernetwork):
                    write_hypernetwork(result, out_dir / "hypernetwork", name, dtype)
            if words and set(formats) != {"Merged"}:
                write_words(family, words, out_dir / "embeddings", dtype, pickled="Automatic1111" in formats)
            if "SingleFile" in formats:
                write_single_file(family, parts, out_dir / f"{name}.safetensors", name)
            if as_pipeline:
                # last: it puts the words into the parts
                write_pipeline(family, parts, words, out_dir / "pipeline")
        return _written(out_dir, name)

    return write


def check_exports(run: TrainingRun, family: Family) -> None:
    """What can be known before the training of what `export_weights` would refuse after it.

    Args:
        family: as it was loaded, with nothing installed.

    Raises:
        ConfigurationError: two words would have one file, or the model's layers have no names in a format.
    """
    lora, inversion = run.method.lora, run.method.textual_inversion
    tokens = (lora.tokens if lora is not None else inversion.tokens if inversion is not None else None) or ()
    file_names([token.placeholder for token in tokens])
    formats = set(run.output.formats or TECHNIQUES[run.method.name].default_formats)
    try:
        if "SingleFile" in formats:
            check_single_file(family)
        if "Kohya" in formats and lora is not None:
            check_kohya(family, lora.train_text_encoder)
    except ValueError as error:
        raise ConfigurationError(f"output.formats: {error}; use Diffusers") from error


def _write_adapter(
    family: Family, result: AdapterWeights, out_dir: Path, name: str, dtype: Dtype, formats: Sequence[str]
) -> None:
    folder = out_dir / "lora"
    if "Diffusers" in formats:
        tensors = plain_all(diffusers_tensors(family, result), dtype)
        write_tensors(folder / ADAPTER_FILE, tensors, diffusers_metadata(result))
    if "Kohya" in formats:
        tensors = plain_all(kohya_tensors(family, result), dtype)
        write_tensors(folder / f"{name}.safetensors", tensors, kohya_metadata(family, result, name))


def _written(out_dir: Path, name: str) -> list[Path]:
    places = [out_dir / place for place in ("lora", "embeddings", "hypernetwork", "pipeline")]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    single = out_dir / f"{name}.safetensors"
    return sorted([*files, single] if single.is_file() else files)


@contextmanager
def _fitting(formats: Sequence[str]) -> Iterator[None]:
    """Raises ConfigurationError where a format cannot hold what is written within."""
    try:
        yield
    except ValueError as error:
        raise ConfigurationError(f"output.formats: {error}; leave out one of {', '.join(formats)}") from error
