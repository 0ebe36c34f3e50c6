"""A library that is installed for those who ask for it costs the others nothing."""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from finetune_trainer.exports.pipelines import write_pipeline
from finetune_trainer.families import load_family


def imported_by_saving(model: Path, folder: Path) -> bool:
    family = load_family(model, torch.device("cpu"))
    write_pipeline(family, {"text_encoder": family.parts["text_encoder"]}, {}, folder)
    return "deepspeed" in sys.modules


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_saving_a_model_does_not_import_deepspeed(tiny_sd: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert not pool.submit(imported_by_saving, tiny_sd, tmp_path).result(timeout=300)
    assert (tmp_path / "text_encoder" / "model.safetensors").is_file()
