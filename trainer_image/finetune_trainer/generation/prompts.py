"""The prompts of a command line: given one by one, in a file, or those that the run was validated with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune_api import TrainingRun

from finetune_trainer.errors import ConfigurationError, DataError


def gather(given: Sequence[str], file: Path | None, run: TrainingRun | None) -> tuple[str, ...]:
    """All prompts, each once: those given, then those in the file, else those of the run's validation.

    Raises:
        ConfigurationError: there is no such file, or no prompt at all.
        DataError: the file holds none, or is no text.
    """
    prompts = [prompt.strip() for prompt in given if prompt.strip()]
    if file is not None:
        prompts += read_prompts(file)
    if not prompts and run is not None:
        prompts = list(run.validation.prompts or ())
    if not prompts:
        raise ConfigurationError("there is nothing to draw; say what with --prompt, or --prompts FILE with one a line")
    return tuple(dict.fromkeys(prompts))


def read_prompts(file: Path) -> list[str]:
    """One prompt a line; empty lines and those that begin with # are passed over."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigurationError(
            f"--prompts is {file}, which cannot be read ({error.strerror}); correct the path"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"--prompts is {file}, which is not UTF-8 text; save it as UTF-8, one prompt a line") from error
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise DataError(f"--prompts is {file}, which holds no prompt; write one a line")
    return prompts
