"""textual_inversion.py: one new row in the table of the text encoder's vectors, which is trained as a whole and put
back but for that row after each step. The script does not clip."""

from __future__ import annotations

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.trainer.baseline import scaffold
from benchmarks.trainer.baseline.options import INITIALIZER, PLACEHOLDER, Options
from benchmarks.trainer.baseline.pictures import TextualInversionPictures
from benchmarks.trainer.watch import Watch

RATE = 5e-4


def train(options: Options, watch: Watch) -> int:
    """Trains, and writes learned_embeds.safetensors to `options.output`. How many steps changed nothing."""
    accelerator = scaffold.make_accelerator(options)
    models = scaffold.Models(options)
    dtype = scaffold.weight_dtype(accelerator)
    tokenizer, encoder = models.tokenizer, models.text_encoder
    number = add_word(models)
    models.vae.requires_grad_(False)  # T701-708
    models.unet.requires_grad_(False)
    body = encoder.text_model if hasattr(encoder, "text_model") else encoder
    for part in (body.encoder, body.final_layer_norm, body.embeddings.position_embedding):
        part.requires_grad_(False)
    optimizer = scaffold.make_optimizer(encoder.get_input_embeddings().parameters(), RATE, options.tuned)
    pictures = TextualInversionPictures(options.pictures, tokenizer, PLACEHOLDER, options.resolution)
    loader = scaffold.make_loader(options, pictures)
    rates = scaffold.constant_rate(optimizer, options.steps)
    encoder.train()
    encoder, optimizer, loader, rates = accelerator.prepare(encoder, optimizer, loader, rates)
    for part in (models.unet, models.vae):
        part.to(accelerator.device, dtype=dtype)
    table = accelerator.unwrap_model(encoder).get_input_embeddings().weight
    originals = table.data.clone()

    def step(batch: dict[str, Tensor]) -> Tensor:
        noisy, timesteps, target = scaffold.noisy_latents(models, batch["pixels"].to(dtype=dtype))
        states = encoder(batch["ids"])[0].to(dtype=dtype)
        prediction = models.unet(noisy, timesteps, states).sample
        loss = scaffold.loss_of(prediction, target, prior=False)
        accelerator.backward(loss)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        kept = torch.ones((len(tokenizer),), dtype=torch.bool)  # T910-917
        kept[number] = False
        with torch.no_grad():
            table[kept] = originals[kept]
        return loss.detach()

    skipped = scaffold.run_steps(options, accelerator, encoder, loader, rates, watch, step)
    save_file({PLACEHOLDER: table.detach()[number : number + 1].cpu()}, options.output / "learned_embeds.safetensors")
    return skipped


def add_word(models: scaffold.Models) -> int:
    """The placeholder's row, which starts as that of the initializer (T664-699)."""
    tokenizer, encoder = models.tokenizer, models.text_encoder
    tokenizer.add_tokens([PLACEHOLDER])
    first = tokenizer.encode(INITIALIZER, add_special_tokens=False)[0]
    number = int(tokenizer.convert_tokens_to_ids(PLACEHOLDER))
    # a table with rows to spare, as that of random weights may be, is not made shorter
    encoder.resize_token_embeddings(max(len(tokenizer), encoder.get_input_embeddings().num_embeddings))
    with torch.no_grad():
        table = encoder.get_input_embeddings().weight.data
        table[number] = table[first].clone()
    return number
