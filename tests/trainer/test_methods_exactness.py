"""Each technique does what its paper says, to the last digits: beside pinned losses stands a second implementation."""

from pathlib import Path

import numpy as np
import pytest
from support import method_reference as plain
from support.method_builds import BUILD, CAPTIONS
from support.method_cases import METHODS, RATE, run_of
from support.tiny_sdxl import build_tiny_sdxl
from support.training import train_once

STEPS, BATCH = 6, 2
PINNED = {
    "dreamBooth": [1.037366, 1.056883, 0.825464, 0.876575, 0.969884, 0.782994],
    "lora": [1.037366, 1.051162, 0.959572, 1.045107, 1.046359, 1.076766],
    "dora": [1.037366, 1.026072, 0.918457, 0.9448, 1.017209, 0.92587],
    "words": [1.040173, 1.053662, 0.962623, 1.030112, 1.061084, 1.088478],
    "mean word": [1.04261, 1.056805, 0.960275, 1.032177, 1.060809, 1.090123],
    "hypernetwork": [1.037374, 1.052952, 0.969057, 1.047804, 1.061645, 1.104131],
    "linear hypernetwork": [1.037364, 1.052792, 0.967529, 1.046141, 1.05125, 1.093233],
    "pivotal": [1.042424, 1.052441, 0.954944, 1.031822, 1.048531, 1.067312],
}


@pytest.mark.parametrize("case", METHODS)
def test_losses_are_those_of_the_reference_and_stay_so(
    case: str, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    _, outcome = train_once(run_of(case, STEPS, BATCH), tiny_sd, pictures, tmp_path)
    reference = plain.Reference(tiny_sd, [CAPTIONS.get(case, "sks dog")])
    BUILD[case](reference)
    np.testing.assert_allclose(outcome.losses, plain.losses_of(reference, pictures, STEPS, BATCH, RATE), rtol=2e-5)
    np.testing.assert_allclose(outcome.losses, PINNED[case], rtol=2e-4)


@pytest.fixture(scope="module")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It predicts the velocity."""
    return build_tiny_sdxl(tmp_path_factory.mktemp("sdxl"), prediction_type="v_prediction")


@pytest.mark.parametrize("case", ["dreamBooth", "lora", "words", "hypernetwork", "pivotal"])
def test_losses_of_sdxl_are_those_of_the_reference(case: str, tiny_sdxl: Path, pictures: Path, tmp_path: Path) -> None:
    """Both text encoders are trained, each read one layer before its last, and the denoiser is told the sizes."""
    _, outcome = train_once(run_of(case, 3, BATCH), tiny_sdxl, pictures, tmp_path)
    reference = plain.Reference(tiny_sdxl, [CAPTIONS.get(case, "sks dog")])
    assert len(reference.encoders) == 2
    BUILD[case](reference)
    np.testing.assert_allclose(outcome.losses, plain.losses_of(reference, pictures, 3, BATCH, RATE), rtol=2e-5)
