"""The training does what the papers say, to the last digits: beside pinned losses stands a second implementation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from finetune_trainer.data.draw import Purpose, choose, draw
from finetune_trainer.data.framing import CENTRE, frame
from finetune_trainer.data.pictures import PictureSet, to_pixels
from finetune_trainer.families import load_family
from finetune_trainer.methods import Needs, NoFiles, make_methods
from finetune_trainer.training.making_samples import make_samples
from finetune_trainer.training.step_module import StepModule
from PIL import Image
from support.tiny_sd import RESOLUTION, build_tiny_sd
from support.training import PROMPT, dataset_of, make_run, train_once
from torch.func import functional_call
from transformers import CLIPTextModel, CLIPTokenizer

STEPS, BATCH, PRIOR_WEIGHT, RANK = 6, 2, 0.7, 4


def reference_losses(model: Path, pictures: Path, technique: str, classes: list[Path], v: bool = False) -> list[float]:
    """DreamBooth and LoRA in plain torch: nothing of the trainer but the definition of what is drawn."""
    unet = UNet2DConditionModel.from_pretrained(model / "unet")
    vae = AutoencoderKL.from_pretrained(model / "vae")
    encoder = CLIPTextModel.from_pretrained(model / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    alphas = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0)

    def text(prompt: str) -> torch.Tensor:
        return encoder(tokenizer([prompt], padding="max_length", return_tensors="pt").input_ids)[0].detach()

    streams = [(Purpose.INSTANCE, sorted(pictures.glob("*.png")), text(PROMPT), 1.0)]
    if classes:
        streams.append((Purpose.CLASS, classes, text("dog"), PRIOR_WEIGHT))

    frozen = {name: value.detach() for name, value in unet.named_parameters()}
    if technique == "lora":
        layers = [
            n
            for n in frozen
            if "attn" in n and n.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"))
        ]
        # PEFT lists A and B of a layer one after the other, and the trainer numbers them in that order
        order = sorted(f"{n.removesuffix('.weight')}.lora_{m}." for n in layers for m in "AB")
        pairs = {}
        for name in layers:
            index = order.index(f"{name.removesuffix('.weight')}.lora_A.")
            first = draw(0, Purpose.INITIALISATION, 0, index).noise((RANK, frozen[name].shape[1])) / RANK
            pairs[name] = (first.requires_grad_(), torch.zeros(frozen[name].shape[0], RANK, requires_grad=True))
        trained = [half for pair in pairs.values() for half in pair]
    else:
        pairs = {}
        frozen = {name: value.clone().requires_grad_() for name, value in frozen.items()}
        trained = list(frozen.values())
    optimizer = torch.optim.AdamW(trained, lr=RATES[technique], weight_decay=0.01, foreach=False, fused=False)

    losses = []
    for step in range(STEPS):
        weights = frozen | {name: frozen[name] + b @ a for name, (a, b) in pairs.items()}
        total = torch.zeros(())
        for purpose, files, embedding, weight in streams:
            for index in range(BATCH):
                file = files[choose(0, purpose, step * BATCH + index, len(files))]
                image = Image.open(file)
                shown = frame(image.height, image.width, (RESOLUTION, RESOLUTION), CENTRE, False)
                posterior = vae.encode(to_pixels(image, shown)).latent_dist
                drawn = draw(0, purpose, step, index)
                shape = tuple(posterior.mean.shape)
                latent = 0.5 * (posterior.mean + posterior.std * drawn.posterior_noise(shape)).detach()
                noise, t = drawn.noise(shape), drawn.timestep(1000)
                signal, grain = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
                said = functional_call(unet, weights, (signal * latent + grain * noise, t, embedding)).sample
                truth = signal * noise - grain * latent if v else noise
                total = total + weight * (said - truth).square().mean() / BATCH
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
    return losses


RATES = {"lora": 1e-2, "dreamBooth": 1e-3}
PINNED: dict[tuple[str, bool], list[float]] = {
    ("lora", False): [1.037328, 1.050151, 0.95615, 1.044634, 1.042459, 1.06716],
    ("lora", True): [1.749722, 1.806142, 1.798092, 1.771206, 1.764204, 1.755127],
    ("dreamBooth", False): [1.037328, 1.023978, 0.880909, 0.949195, 0.999965, 0.903142],
    ("dreamBooth", True): [1.749722, 1.750669, 1.653062, 1.585727, 1.619809, 1.434067],
}


@pytest.mark.parametrize(("technique", "prior"), PINNED)
def test_losses_are_those_of_the_reference_and_stay_so(
    technique: str, prior: bool, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    run = make_run(technique, prior, training=training(technique))
    _, outcome = train_once(run, tiny_sd, pictures, tmp_path)
    classes = sorted((tmp_path / "cache").glob("class-images/*/*.png"))
    assert len(classes) == (4 if prior else 0)
    np.testing.assert_allclose(outcome.losses, reference_losses(tiny_sd, pictures, technique, classes), rtol=2e-5)
    np.testing.assert_allclose(outcome.losses, PINNED[technique, prior], rtol=2e-4)


def test_velocity_models_are_trained_towards_the_velocity(pictures: Path, tmp_path: Path) -> None:
    model = build_tiny_sd(tmp_path / "model", prediction_type="v_prediction")
    _, outcome = train_once(make_run("dreamBooth", training=training("dreamBooth")), model, pictures, tmp_path)
    reference = reference_losses(model, pictures, "dreamBooth", [], v=True)
    np.testing.assert_allclose(outcome.losses, reference, rtol=2e-5)


@pytest.mark.parametrize("technique", RATES)
def test_gradient_checkpointing_changes_nothing(technique: str, tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    plain = make_run(technique, training=training(technique))
    thrifty = make_run(technique, training=training(technique) | {"gradientCheckpointing": True})
    _, one = train_once(plain, tiny_sd, pictures, tmp_path / "one")
    _, other = train_once(thrifty, tiny_sd, pictures, tmp_path / "other")
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-6)


@pytest.mark.parametrize(("batch", "accumulation"), [(1, 6), (2, 3), (3, 2), (1, 2), (1, 4), (1, 5), (4, 2), (5, 2)])
@pytest.mark.parametrize("technique", RATES)
def test_cutting_a_step_into_micro_batches_changes_nothing(
    technique: str, batch: int, accumulation: int, tiny_sd: Path, pictures: Path
) -> None:
    whole_loss, whole = loss_and_gradient(technique, batch * accumulation, 1, tiny_sd, pictures)
    loss, gradient = loss_and_gradient(technique, batch, accumulation, tiny_sd, pictures)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert (gradient - whole).norm() <= 1e-5 * whole.norm()


def loss_and_gradient(
    technique: str, batch: int, accumulation: int, model: Path, pictures: Path
) -> tuple[float, torch.Tensor]:
    """Of the step number 3, with class pictures; any pictures will do for those."""
    family = load_family(model, torch.device("cpu"))
    run = make_run(technique, True, training={"batchSize": batch, "gradientAccumulationSteps": accumulation})
    method = make_methods(run.method, 0)[0]
    (group,) = method.install(family, NoFiles())
    for name, parameter in group.parameters.items():
        if "lora_B" in name:  # zero at first, and then A would have no gradient
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    folder = PictureSet.open(pictures)
    module = StepModule(family, method.needs, run.training.loss)
    total = 0.0
    for micro_batch in make_samples(run, family, [method], dataset_of(run, folder), folder, None).step(3):
        loss, _ = module(micro_batch)
        loss.backward()
        total += loss.item()
    gradients = [value.grad.flatten() for value in group.parameters.values() if value.grad is not None]
    assert len(gradients) == len(group.parameters)
    return total, torch.cat(gradients)


def test_a_text_encoder_that_runs_in_each_step_gives_the_loss_of_a_cached_one(tiny_sd: Path, pictures: Path) -> None:
    """Techniques that train the text encoder get token ids in place of its cached output."""
    family = load_family(tiny_sd, torch.device("cpu"))
    run, method = make_run("dreamBooth", True), make_methods(make_run("dreamBooth").method, 0)[0]
    folder = PictureSet.open(pictures)
    (cached,) = make_samples(run, family, [method], dataset_of(run, folder), folder, None).step(0)
    loss, losses = StepModule(family, Needs(), run.training.loss)(cached)
    live = StepModule(family, Needs(live_text_encoder=True), run.training.loss)
    live_loss, _ = live(replace(cached, cond=None))
    assert live_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert losses.shape == (2,)
    assert loss.item() == pytest.approx((losses[0] + 0.7 * losses[1]).item(), rel=1e-6)
    assert set(live.parts) == {"unet", "text_encoder"}


def training(technique: str) -> dict[str, object]:
    return {"steps": STEPS, "batchSize": BATCH, "learningRate": RATES[technique]}
