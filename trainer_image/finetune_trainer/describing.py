"""A run in rows for people: what was set, and what it was made of."""

from __future__ import annotations

import torch
from finetune_api import TrainingRun
from finetune_api.methods import TokenSpec
from finetune_api.resolve import prior_of

from finetune_trainer.attempt import Attempt
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.telemetry.efficiency import Efficiency
from finetune_trainer.training.loss import MIN_SNR_GAMMA


def settings_of(run: TrainingRun, total_steps: int) -> dict[str, object]:
    """Label → value, what matters most first."""
    training, engine = run.training, run.engine
    processes = engine.nodes * engine.processes_per_node
    batch = (training.batch_size, training.gradient_accumulation_steps, processes)
    rows: dict[str, object] = {"Technique": run.method.name} | _of_technique(run)
    prior = prior_of(run.method)
    if prior is not None and prior.class_images is not None:
        rows["Prior preservation"] = (
            f"“{prior.class_prompt}”, {prior.class_images.count} pictures, weight {prior.weight:g}"
        )
    rows |= {
        "Steps": total_steps,
        "Batch": " × ".join(map(str, batch if processes > 1 else batch[:2])),
        "Learning rate": f"{training.learning_rate:g}, {training.scheduler.name}",
        "Optimizer": training.optimizer.name,
        "Loss": _loss(run),
        "Captions": run.dataset.captions.source if run.dataset.captions is not None else "Prompt",
        "Seed": training.seed,
        "Drawn with": f"{run.validation.inference_steps} steps, guidance {run.validation.guidance_scale:g}",
    }
    if training.ema:
        rows["Exported"] = "the moving average of the weights"
    return rows


def provenance_of(attempt: Attempt, pictures: PictureSet, device: str) -> dict[str, object]:
    """Label → value; `pictures` are the user's, and `device` is what was trained on, for people."""
    run, inputs = attempt.run, attempt.inputs
    rows: dict[str, object] = {
        "Base model": run.base_model.uri,
        "Its revision": inputs.model.revision,
        "Pictures": f"{run.dataset.uri} ({len(pictures)}, sha256:{pictures.digest})",
    }
    if inputs.encoder is not None and run.judgement is not None:
        rows["Judged by"] = f"{run.judgement.encoder_uri} ({inputs.encoder.revision})"
    return rows | {
        "Run": f"{run.identity.namespace}/{run.identity.name}, {run.identity.uid}",
        "Settings' digest": f"sha256:{attempt.digest}",
        "Device": device,
        "torch": torch.__version__,
    }


def efficiency_of(efficiency: Efficiency) -> dict[str, object]:
    """Label → value, of the attempt that finished the run; what was not measured says so."""
    performance, pace = efficiency.performance(), efficiency.images_per_second
    fast, slow = performance.step_seconds_p50, performance.step_seconds_p99
    held = performance.memory_bytes
    rows: dict[str, object] = {
        "Pictures a second": "–" if pace is None else f"{pace:.2f}",
        "Time of a step": "–" if fast is None or slow is None else f"{_seconds(fast)}; 99 % within {_seconds(slow)}",
        "Model FLOPs utilisation": "not measured" if performance.mfu is None else f"{performance.mfu:.1%}",
        "Memory": f"{held['resident'] / 2**30:.2f} GiB",
    }
    if held["devicePeak"]:
        rows["Memory of the GPU, at most"] = f"{held['devicePeak'] / 2**30:.2f} GiB"
    if efficiency.engine is not None:
        rows["Engine"] = efficiency.engine.told.removeprefix("engine: ")
    shares = performance.time_shares
    told = [f"{name} {share:.1%}" for name, share in shares.items()]
    rows["Time went into"] = ", ".join([*told, f"the rest {max(0.0, 1 - sum(shares.values())):.1%}"])
    return rows


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def _of_technique(run: TrainingRun) -> dict[str, object]:
    method = run.method
    if method.dream_booth is not None:
        text = "text encoder too" if method.dream_booth.train_text_encoder else "the denoiser"
        return {"Prompt": method.dream_booth.prompt, "Trained": text}
    if method.lora is not None:
        lora = method.lora
        kinds = [
            ("DoRA", lora.use_dora),
            ("rank-stabilised", lora.use_rslora),
            ("text encoder", lora.train_text_encoder),
        ]
        rows: dict[str, object] = {
            "Prompt": lora.prompt,
            "Rank, alpha": ", ".join([f"{lora.rank}, {lora.alpha:g}", *(name for name, used in kinds if used)]),
            "Layers": ", ".join(lora.targets),
        }
        return rows | ({"New words": _words(lora.tokens)} if lora.tokens else {})
    if method.hypernetwork is not None:
        network = method.hypernetwork
        structure = " ".join(f"{width:g}" for width in network.layer_structure)
        return {"Prompt": network.prompt, "Layers": f"{structure}, {network.activation}"}
    assert method.textual_inversion is not None
    return {"New words": _words(method.textual_inversion.tokens)}


def _words(tokens: tuple[TokenSpec, ...]) -> str:
    return ", ".join(
        f"{token.placeholder} ({token.vectors} vector{'s' if token.vectors > 1 else ''} from "
        f"{token.initializer or token.initial_embedding_uri or 'the mean word'})"
        for token in tokens
    )


def _loss(run: TrainingRun) -> str:
    loss = run.training.loss
    gamma = MIN_SNR_GAMMA if loss.min_snr_gamma is None else loss.min_snr_gamma
    words = {"None": "mean squared error", "MinSnr": f"min-SNR, gamma {gamma:g}", "Debiased": "debiased"}
    offset = f", noise offset {loss.noise_offset:g}" if loss.noise_offset else ""
    return words[loss.weighting] + offset
