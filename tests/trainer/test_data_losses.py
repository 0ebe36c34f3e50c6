"""Every option of the loss beside a second implementation, and the same total however a step is cut."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from finetune_api import TrainingRun
from finetune_trainer.data.draw import Purpose, choose, draw
from finetune_trainer.data.framing import CENTRE, frame
from finetune_trainer.data.pictures import to_pixels
from finetune_trainer.data.samples import Batch
from finetune_trainer.families import load_family
from finetune_trainer.group.team import Alone
from finetune_trainer.methods import make_methods
from finetune_trainer.training.making_samples import make_samples
from finetune_trainer.training.step_module import StepModule
from PIL import Image
from support.tiny_sd import RESOLUTION, build_tiny_sd
from support.training import PROMPT, dataset_of, make_pictures, make_run
from transformers import CLIPTextModel, CLIPTokenizer

SQUARE = (RESOLUTION, RESOLUTION)
BATCH, ACCUMULATION, PRIOR_WEIGHT, STEP = 2, 2, 0.7, 3


class Seat(Alone):
    """One of several processes, as far as samples know."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures, each with a soft mask of its own."""
    folder = make_pictures(tmp_path_factory.mktemp("masked"), 5)
    for path in sorted(folder.glob("*.png")):
        shape = Image.open(path).size[::-1]
        values = np.random.default_rng(int(path.stem)).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(values).save(path.with_name(path.stem + "-masklabel.png"))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "epsilon": build_tiny_sd(folder / "epsilon"),
        "v_prediction": build_tiny_sd(folder / "velocity", prediction_type="v_prediction"),
    }


def run_with(loss: dict[str, object], batch: int, accumulation: int, **dataset: object) -> TrainingRun:
    training = {"batchSize": batch, "gradientAccumulationSteps": accumulation, "loss": loss}
    return make_run("dreamBooth", True, training=training, dataset={"masks": "Sidecar", **dataset})


def batches_of(run: TrainingRun, model: Path, folder: Path, size: int = 1) -> tuple[StepModule, list[Batch]]:
    """The micro-batches of all processes of a step; the user's pictures are the class pictures too."""
    family = load_family(model, torch.device("cpu"))
    methods = make_methods(run.method, 0)
    dataset = dataset_of(run, folder)
    batches: list[Batch] = []
    for rank in range(size):
        batches += make_samples(run, family, methods, dataset, dataset.pictures, None, Seat(rank, size)).step(STEP)
    return StepModule(family, methods[0].needs, run.training.loss), batches


@torch.no_grad()
def total(run: TrainingRun, model: Path, folder: Path, size: int = 1) -> float:
    module, batches = batches_of(run, model, folder, size)
    return sum(module(batch)[0].item() for batch in batches)


@torch.no_grad()
def reference(model: Path, folder: Path, velocity: bool, weighting: str, gamma: float, offset: float) -> float:
    """The loss of a step in plain torch: nothing of the trainer but what is drawn and how pictures are cut."""
    unet = UNet2DConditionModel.from_pretrained(model / "unet")
    vae = AutoencoderKL.from_pretrained(model / "vae")
    encoder = CLIPTextModel.from_pretrained(model / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    alphas = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    files = sorted(path for path in folder.glob("*.png") if "mask" not in path.name)
    result = 0.0
    for purpose, prompt, factor in ((Purpose.INSTANCE, PROMPT, 1.0), (Purpose.CLASS, "dog", PRIOR_WEIGHT)):
        text = encoder(tokenizer([prompt], padding="max_length", return_tensors="pt").input_ids)[0]
        count = BATCH * ACCUMULATION
        for index in range(count):
            file = files[choose(0, purpose, STEP * count + index, len(files))]
            image = Image.open(file)
            shown = frame(image.height, image.width, SQUARE, CENTRE, False)
            posterior = vae.encode(to_pixels(image, shown)).latent_dist
            drawn = draw(0, purpose, STEP, index)
            shape = tuple(posterior.mean.shape)
            latent = 0.5 * (posterior.mean + posterior.std * drawn.posterior_noise(shape))
            noise, t = drawn.noise(shape) + offset * drawn.offset_noise(4), drawn.timestep(1000)
            signal, grain = float(alphas[t] ** 0.5), float((1 - alphas[t]) ** 0.5)
            said = unet(signal * latent + grain * noise, t, text).sample
            errors = (said - (signal * noise - grain * latent if velocity else noise)).square()
            if purpose == Purpose.INSTANCE:
                mask = Image.open(file.with_name(file.stem + "-masklabel.png")).crop(shown.box)
                small = np.asarray(mask.resize(shape[:1:-1], Image.Resampling.BOX), np.float32)
                loss = (errors.numpy() * small).sum() / (4 * small.sum())
            else:
                loss = errors.mean().item()
            snr = float(alphas[t] / (1 - alphas[t]))
            if weighting == "MinSnr":
                loss *= min(snr, gamma) / (snr + 1 if velocity else snr)
            elif weighting == "Debiased":
                loss *= 1 / (min(snr, 1000) + 1) if velocity else min(snr, 1000) ** -0.5
            result += factor * loss / count
    return result


OPTIONS = [("None", 5.0, 0.0), ("None", 5.0, 0.1), ("MinSnr", 5.0, 0.0), ("MinSnr", 0.3, 0.05), ("Debiased", 5.0, 0.0)]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("weighting", "gamma", "offset"), OPTIONS)
def test_the_loss_of_a_step_is_that_of_the_reference(
    weighting: str, gamma: float, offset: float, prediction: str, models: dict[str, Path], masked: Path
) -> None:
    """With masks and class pictures, whose own timesteps weigh them."""
    loss: dict[str, object] = {"weighting": weighting, "noiseOffset": offset}
    if weighting == "MinSnr" and gamma != 5:
        loss["minSnrGamma"] = gamma
    measured = total(run_with(loss, BATCH, ACCUMULATION), models[prediction], masked)
    velocity = prediction == "v_prediction"
    expected = reference(models[prediction], masked, velocity, weighting, gamma, offset)
    assert measured == pytest.approx(expected, rel=1e-5)
    plain = total(run_with({}, BATCH, ACCUMULATION), models[prediction], masked)
    assert (measured == pytest.approx(plain, rel=1e-4)) == (weighting == "None" and offset == 0)


# pictures of a step → the ways to cut it: batch size, accumulation, processes
CUTS: dict[int, Sequence[tuple[int, int, int]]] = {
    12: [(1, 12, 1), (2, 3, 2), (3, 2, 2), (4, 3, 1), (4, 1, 3), (1, 3, 4)],
    10: [(1, 10, 1), (5, 2, 1), (5, 1, 2), (2, 5, 1), (1, 1, 10)],
}


@pytest.mark.parametrize("pictures_per_step", CUTS)
def test_cutting_a_step_into_micro_batches_and_processes_changes_no_total(
    pictures_per_step: int, models: dict[str, Path], masked: Path
) -> None:
    """With everything that is weighed or drawn for a sample: timestep, mask, flip, caption, offset."""
    loss: dict[str, object] = {"weighting": "MinSnr", "noiseOffset": 0.05}
    dataset = {"flip": True, "captions": {"dropout": 0.3}}
    totals = [
        total(run_with(loss, batch, accumulation, **dataset), models["epsilon"], masked, size)
        for batch, accumulation, size in CUTS[pictures_per_step]
    ]
    np.testing.assert_allclose(totals, totals[0], rtol=1e-6)


def test_each_micro_batch_of_each_process_seeds_dropout_differently(models: dict[str, Path], masked: Path) -> None:
    _, batches = batches_of(run_with({}, 2, 3), models["epsilon"], masked, size=2)
    assert len({batch.seed for batch in batches}) == 6


def test_noise_offset_shifts_channels_and_nothing_else(models: dict[str, Path], masked: Path) -> None:
    _, (plain, *_) = batches_of(run_with({}, 3, 1), models["epsilon"], masked)
    _, (offset, *_) = batches_of(run_with({"noiseOffset": 0.1}, 3, 1), models["epsilon"], masked)
    shift = offset.noise - plain.noise
    torch.testing.assert_close(shift, shift.mean((2, 3), keepdim=True).expand_as(shift), rtol=0, atol=1e-6)
    assert shift.mean((2, 3)).unique().numel() == shift.shape[0] * shift.shape[1]
    assert torch.equal(offset.timesteps, plain.timesteps)
    assert torch.equal(offset.posterior_noise, plain.posterior_noise)
