"""Of all files that a run exports, those that people load, and in which order."""

from pathlib import Path

import pytest
from finetune_trainer.exports.loadable import loadable


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["lora/dog.safetensors", "lora/pytorch_lora_weights.safetensors"], [1, 0]),
        (["dog.safetensors", "pipeline/model_index.json", "pipeline/unet/config.json"], ["pipeline", 0]),
        (["pipeline/unet/diffusion_pytorch_model.safetensors", "pipeline/vae/config.json"], []),
        (["embeddings/<toy>.pt", "embeddings/<toy>.safetensors", "lora/pytorch_lora_weights.safetensors"], [2, 0, 1]),
        (["hypernetwork/dog.pt", "hypernetwork/dog.safetensors", "report.html"], [0, 1]),
    ],
)
def test_what_people_load_comes_first_in_diffusers_layout(files: list[str], told: list[int | str]) -> None:
    expected = tuple(files[place] if isinstance(place, int) else place for place in told)
    assert loadable([Path(name) for name in files]) == expected
