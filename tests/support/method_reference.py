"""The techniques once more, in plain torch: nothing of the trainer but the definition of what is drawn at random.

What is trained is said as the weights or activations that come out, not as modules put into a model, so that a mistake
in how those are put there shows.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from finetune_trainer.data.draw import Draw, Purpose, choose, draw
from PIL import Image
from torch import Tensor
from torch.func import functional_call
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

Weights = Callable[[], dict[str, Tensor]]
"""Those that are not the base model's, by their names there."""


@dataclass
class Reference:
    """A base model and what a technique makes of it."""

    folder: Path
    captions: list[str] = field(default_factory=lambda: ["sks dog"])
    """Those of every picture, to draw from where there are several."""
    groups: list[dict[str, object]] = field(default_factory=list)
    """For AdamW; the rate of the first is the run's."""
    after_step: Callable[[], None] = lambda: None
    count: int = 0
    """Tensors that were drawn so far: their first values are numbered."""

    def __post_init__(self) -> None:
        self.alphas, self.velocity = noise_levels(self.folder)
        self.unet = UNet2DConditionModel.from_pretrained(self.folder / "unet").requires_grad_(False)
        self.vae = AutoencoderKL.from_pretrained(self.folder / "vae").requires_grad_(False)
        kinds = {"": CLIPTextModel, "_2": CLIPTextModelWithProjection}
        found = [end for end in kinds if (self.folder / f"text_encoder{end}").is_dir()]
        self.encoders = [
            kinds[end].from_pretrained(self.folder / f"text_encoder{end}", dtype=torch.float32).requires_grad_(False)
            for end in found
        ]
        self.tokenizers = [CLIPTokenizer.from_pretrained(self.folder / f"tokenizer{end}") for end in found]
        self.unet_weights: Weights = lambda: {}
        self.encoder_weights: list[Weights] = [lambda: {} for _ in found]
        self.ids = [self.tokens(caption) for caption in self.captions]

    def tokens(self, prompt: str, new: int = 0) -> Tensor:
        """A prompt's window, followed by `new` new words; int64 [encoders, 1, length]."""
        rows = []
        for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True):
            known = tokenizer(prompt, add_special_tokens=False).input_ids if prompt else []
            words = encoder.config.vocab_size
            row = [tokenizer.bos_token_id, *known, *range(words, words + new), tokenizer.eos_token_id]
            rows.append([row + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(row))])
        return torch.tensor(rows)

    def caption(self, file: Path, drawn: Draw) -> Tensor:
        """Token ids of a sample."""
        return self.ids[drawn.template(len(self.ids)) if len(self.ids) > 1 else 0]

    def first(self, shape: tuple[int, ...]) -> Tensor:
        """The next tensor's first values, normal."""
        self.count += 1
        return draw(0, Purpose.INITIALISATION, 0, self.count - 1).noise(shape)

    def predict(self, noisy: Tensor, timestep: int, ids: Tensor, sizes: Tensor) -> Tensor:
        read = [
            functional_call(encoder, weights(), (row,), {"output_hidden_states": True})
            for encoder, weights, row in zip(self.encoders, self.encoder_weights, ids, strict=True)
        ]
        more = {}
        if len(read) == 1:
            text = read[0].last_hidden_state
        else:  # SDXL: https://arxiv.org/abs/2307.01952, sections 2.1 and 2.2
            text = torch.cat([each.hidden_states[-2] for each in read], dim=-1)
            end = ids[1, 0].tolist().index(self.tokenizers[1].eos_token_id)
            pooled = self.encoders[1].text_projection(read[1].last_hidden_state[:, end])
            more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
        said: Tensor = functional_call(self.unet, self.unet_weights(), (noisy, timestep, text), more).sample
        return said


def noise_levels(folder: Path) -> tuple[Tensor, bool]:
    """alpha-bar of each timestep of Stable Diffusion's schedule, and whether the velocity is predicted."""
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    roots = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0).sqrt()
    if scheduler["rescale_betas_zero_snr"]:  # https://arxiv.org/abs/2305.08891, algorithm 1
        roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return roots**2, scheduler["prediction_type"] == "v_prediction"


def whole(reference: Reference, text_rate: float) -> None:
    """All weights of the UNet and of the text encoders."""
    for module in (reference.unet, *reference.encoders):
        module.requires_grad_(True)
    reference.groups = [
        {"params": list(reference.unet.parameters())},
        *({"params": list(encoder.parameters()), "lr": text_rate} for encoder in reference.encoders),
    ]


def low_rank(
    reference: Reference,
    rank: int,
    scale: float,
    ends: Iterable[str],
    text_ends: Iterable[str],
    dora: bool,
    rate: float,
) -> None:
    """Matrices beside the layers whose names end in `ends` (UNet) and `text_ends` (text encoders)."""
    changed: list[Weights] = []
    parts_of = [(reference.unet, tuple(ends)), *((encoder, tuple(text_ends)) for encoder in reference.encoders)]
    for module, chosen in parts_of:
        frozen = dict(module.named_parameters())
        layers = [n for n in frozen if chosen and n.removesuffix(".weight").endswith(chosen) and n.endswith(".weight")]
        kinds = ("lora_A.", "lora_B.", "lora_magnitude_vector.")[: 3 if dora else 2]
        # the trainer numbers all new tensors of a part in the order of their names
        order = sorted(f"{n.removesuffix('.weight')}.{kind}" for n in layers for kind in kinds)
        base, parts = reference.count, {}
        for name in layers:
            weight, path = frozen[name], name.removesuffix("weight")
            reference.count = base + order.index(f"{path}lora_A.")
            down = reference.first((rank, *weight.shape[1:])) / rank
            up = torch.zeros(weight.shape[0], rank, requires_grad=True)
            length = weight.flatten(1).norm(dim=1).clone().requires_grad_(dora)
            parts[name] = (down.requires_grad_(), up, length)
        reference.count = base + len(order)

        def weights(parts: dict = parts, frozen: dict = frozen) -> dict[str, Tensor]:
            merged = {}
            for name, (down, up, length) in parts.items():
                whole = frozen[name] + scale * (up @ down.flatten(1)).view(frozen[name].shape)
                if dora:  # the norm is a constant for the gradient, section 4.3 of the paper
                    factor = length / whole.flatten(1).norm(dim=1).detach()
                    whole = whole * factor.view(-1, *[1] * (whole.dim() - 1))
                merged[name] = whole
            return merged

        changed.append(weights)
        values = [half for pair in parts.values() for half in (pair if dora else pair[:2])]
        if values:
            reference.groups.append({"params": values} | ({} if module is reference.unet else {"lr": rate}))
    reference.unet_weights, *reference.encoder_weights = changed


def new_words(reference: Reference, start: Callable[[Tensor], Tensor], keep: bool) -> None:
    """Rows appended to the table of each text encoder, and nothing of the tables moving. They end every caption.

    Args:
        start: makes the first rows of a table.
    """
    key = "text_model.embeddings.token_embedding.weight"
    moving: list[tuple[Tensor, Tensor]] = []
    for number, encoder in enumerate(reference.encoders):
        table = dict(encoder.named_parameters())[key]
        length = table.norm(dim=1).mean()
        rows = F.normalize(start(table), dim=1) * length if keep else start(table)
        rows = rows.clone().requires_grad_()
        moving.append((rows, length))
        before = reference.encoder_weights[number]
        reference.encoder_weights[number] = lambda before=before, table=table, rows=rows: (
            before() | {key: torch.cat([table, rows])}
        )
        reference.groups.append({"params": [rows], "weight_decay": 0.0})
    reference.ids = [reference.tokens(caption, len(rows)) for caption in reference.captions]

    def project() -> None:
        for rows, length in moving:
            rows.data = F.normalize(rows.data, dim=1) * length

    if keep:
        reference.after_step = project


class WithNetworks:
    """An attention processor that sends the context through small networks, written out without fused attention."""

    def __init__(self, pairs: dict[int, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]) -> None:
        self.pairs = pairs

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):  # type: ignore[no-untyped-def] # diffusers calls it
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        keys, values = self.pairs.get(context.shape[-1], (lambda x: x, lambda x: x))
        query, key, value = attn.to_q(hidden_states), attn.to_k(keys(context)), attn.to_v(values(context))
        heads = [attn.head_to_batch_dim(tensor) for tensor in (query, key, value)]
        weights = (heads[0] @ heads[1].transpose(1, 2) * attn.scale).softmax(-1)
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(weights @ heads[2])))


def hypernetworks(
    reference: Reference,
    structure: tuple[float, ...],
    activation: Callable[[Tensor], Tensor],
    norm: bool,
    sizes: set[int],
) -> None:
    """x + net(x) on the contexts of these widths."""
    pairs, named = {}, {}
    for size in sorted(sizes):
        nets = []
        for position in range(2):
            stages = []
            index = 0
            for number in range(len(structure) - 1):
                before, after = int(size * structure[number]), int(size * structure[number + 1])
                stage = [torch.empty(after, before), torch.zeros(after)]
                prefix = f"{size}.{position}.linear."
                named[f"{prefix}{index}.weight"], named[f"{prefix}{index}.bias"] = stage
                index += 1
                last = number == len(structure) - 2
                index += 0 if last or activation is None else 1
                if norm:
                    stage += [torch.empty(after), torch.zeros(after)]
                    named[f"{prefix}{index}.weight"], named[f"{prefix}{index}.bias"] = stage[2:]
                    index += 1
                stages.append(stage)
            nets.append(lambda x, stages=stages: x + _through(x, stages, activation))
        pairs[size] = tuple(nets)
    for name in sorted(named):
        if name.endswith("weight"):
            named[name].copy_(0.01 * reference.first(tuple(named[name].shape)))
        else:
            reference.count += 1
    for tensor in named.values():
        tensor.requires_grad_()
    reference.unet.set_attn_processor(WithNetworks(pairs))
    reference.groups = [{"params": [named[name] for name in sorted(named)]}]


def _through(x: Tensor, stages: list[list[Tensor]], activation: Callable[[Tensor], Tensor] | None) -> Tensor:
    for number, (weight, bias, *norm) in enumerate(stages):
        x = x @ weight.T + bias
        if activation is not None and number < len(stages) - 1:
            x = activation(x)
        if norm:
            spread = ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True)
            x = (x - x.mean(-1, keepdim=True)) / (spread + 1e-5).sqrt() * norm[0] + norm[1]
    return x


def losses_of(reference: Reference, pictures: Path, steps: int, batch: int, rate: float) -> list[float]:
    """The training itself."""
    alphas, scale = reference.alphas, reference.vae.config.scaling_factor
    side = reference.unet.config.sample_size * 2 ** (len(reference.vae.config.block_out_channels) - 1)
    optimizer = torch.optim.AdamW(reference.groups, lr=rate, weight_decay=0.01, foreach=False, fused=False)
    trained = [value for group in optimizer.param_groups for value in group["params"]]
    files = sorted(pictures.glob("*.png"))
    losses = []
    for step in range(steps):
        total = torch.zeros(())
        for index in range(batch):
            file = files[choose(0, Purpose.INSTANCE, step * batch + index, len(files))]
            posterior = reference.vae.encode(square(file, side)).latent_dist
            drawn = draw(0, Purpose.INSTANCE, step, index)
            shape = tuple(posterior.mean.shape)
            latent = scale * (posterior.mean + posterior.std * drawn.posterior_noise(shape))
            noise, t = drawn.noise(shape), drawn.timestep(1000)
            signal, grain = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
            noisy, ids = signal * latent + grain * noise, reference.caption(file, drawn)
            said = reference.predict(noisy, t, ids, sizes_of(file, side))
            truth = signal * noise - grain * latent if reference.velocity else noise
            total = total + (said - truth).square().mean() / batch
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        reference.after_step()
        losses.append(total.item())
    return losses


def sizes_of(file: Path, side: int) -> Tensor:
    """Height and width of a picture as it came, top and left of its middle once that is `side` wide, and `side` twice;
    float32 [1, 6]."""
    width, height = Image.open(file).size
    short = min(width, height)
    top, left = (round((length - short) // 2 * side / short) for length in (height, width))
    return torch.tensor([[height, width, top, left, side, side]], dtype=torch.float32)


def square(file: Path, side: int) -> Tensor:
    """The middle of a picture, float32 [1, 3, side, side] in -1 … 1."""
    picture = Image.open(file)
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    small = picture.crop((left, top, left + short, top + short)).resize((side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
