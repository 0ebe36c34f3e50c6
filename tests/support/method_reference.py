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
from transformers import CLIPTextModel, CLIPTokenizer


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
        encoder = CLIPTextModel.from_pretrained(self.folder / "text_encoder", dtype=torch.float32)
        self.encoder = encoder.requires_grad_(False)
        self.tokenizer = CLIPTokenizer.from_pretrained(self.folder / "tokenizer")
        self.unet_weights: Callable[[], dict[str, Tensor]] = lambda: {}
        self.encoder_weights: Callable[[], dict[str, Tensor]] = lambda: {}
        self.ids = [self.tokens(caption) for caption in self.captions]

    def tokens(self, prompt: str, new: int = 0) -> Tensor:
        """A prompt's window, followed by `new` new words."""
        known = self.tokenizer(prompt, add_special_tokens=False).input_ids if prompt else []
        words = self.encoder.config.vocab_size
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        row = [begin, *known, *range(words, words + new), end]
        return torch.tensor([row + [end] * (self.tokenizer.model_max_length - len(row))])

    def caption(self, file: Path, drawn: Draw) -> Tensor:
        """Token ids of a sample."""
        return self.ids[drawn.template(len(self.ids)) if len(self.ids) > 1 else 0]

    def first(self, shape: tuple[int, ...]) -> Tensor:
        """The next tensor's first values, normal."""
        self.count += 1
        return draw(0, Purpose.INITIALISATION, 0, self.count - 1).noise(shape)

    def predict(self, noisy: Tensor, timestep: int, ids: Tensor) -> Tensor:
        text = functional_call(self.encoder, self.encoder_weights(), (ids,))[0]
        said: Tensor = functional_call(self.unet, self.unet_weights(), (noisy, timestep, text)).sample
        return said


def noise_levels(folder: Path) -> tuple[Tensor, bool]:
    """alpha-bar of each timestep of Stable Diffusion's schedule, and whether the velocity is predicted."""
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    roots = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0).sqrt()
    if scheduler["rescale_betas_zero_snr"]:  # https://arxiv.org/abs/2305.08891, algorithm 1
        roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return roots**2, scheduler["prediction_type"] == "v_prediction"


def whole(reference: Reference, text_rate: float) -> None:
    """All weights of the UNet and the text encoder."""
    for module in (reference.unet, reference.encoder):
        module.requires_grad_(True)
    reference.groups = [
        {"params": list(reference.unet.parameters())},
        {"params": list(reference.encoder.parameters()), "lr": text_rate},
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
    """Matrices beside the layers whose names end in `ends` (UNet) and `text_ends` (text encoder)."""
    changed = []
    for module, chosen in ((reference.unet, tuple(ends)), (reference.encoder, tuple(text_ends))):
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
            reference.groups.append({"params": values} | ({"lr": rate} if module is reference.encoder else {}))
    reference.unet_weights, reference.encoder_weights = changed


def new_words(reference: Reference, rows: Tensor, keep: bool) -> None:
    """Rows appended to the table of the text encoder, and nothing of the table moving. They end every caption."""
    key = "text_model.embeddings.token_embedding.weight"
    table = dict(reference.encoder.named_parameters())[key]
    length = table.norm(dim=1).mean()
    if keep:
        rows = F.normalize(rows, dim=1) * length
    rows = rows.clone().requires_grad_()
    before = reference.encoder_weights
    reference.encoder_weights = lambda: before() | {key: torch.cat([table, rows])}
    reference.ids = [reference.tokens(caption, len(rows)) for caption in reference.captions]
    reference.groups.append({"params": [rows], "weight_decay": 0.0})

    def project() -> None:
        if keep:
            rows.data = F.normalize(rows.data, dim=1) * length

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
            said = reference.predict(signal * latent + grain * noise, t, reference.caption(file, drawn))
            truth = signal * noise - grain * latent if reference.velocity else noise
            total = total + (said - truth).square().mean() / batch
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        reference.after_step()
        losses.append(total.item())
    return losses


def square(file: Path, side: int) -> Tensor:
    """The middle of a picture, float32 [1, 3, side, side] in -1 … 1."""
    picture = Image.open(file)
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    small = picture.crop((left, top, left + short, top + short)).resize((side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
