"""Techniques as the tests set them: each with what is special to it, small enough for the tiny model."""

from finetune_api import TrainingRun

from support.training import PROMPT, make_run

RATE, TEXT_RATE = 1e-2, 3e-3
TOY = {"placeholder": "<toy>", "vectors": 3, "initializer": "d o"}

METHODS: dict[str, dict[str, dict[str, object]]] = {
    "dreamBooth": {"dreamBooth": {"prompt": PROMPT, "trainTextEncoder": True, "textEncoderLearningRate": TEXT_RATE}},
    "lora": {
        "lora": {
            "prompt": PROMPT,
            "rank": 4,
            "alpha": 2,
            "targets": ["attention", "feedForward"],
            "trainTextEncoder": True,
            "textEncoderLearningRate": TEXT_RATE,
        }
    },
    "dora": {
        "lora": {
            "prompt": PROMPT,
            "rank": 4,
            "alpha": 3,
            "targets": ["attention", "convolution"],
            "useDora": True,
            "useRslora": True,
        }
    },
    "words": {"textualInversion": {"tokens": [TOY]}},
    "mean word": {
        "textualInversion": {"tokens": [{"placeholder": "<toy>", "vectors": 2}], "normalizeEmbeddings": False}
    },
    "hypernetwork": {"hypernetwork": {"prompt": PROMPT, "activation": "Mish", "layerNorm": True}},
    "linear hypernetwork": {"hypernetwork": {"prompt": PROMPT, "layerStructure": [1, 0.5, 2, 1], "sizes": [24, 32]}},
    "pivotal": {
        "lora": {
            "prompt": "a <toy>",
            "rank": 4,
            "trainTextEncoder": True,
            "textEncoderLearningRate": TEXT_RATE,
            "tokens": [TOY],
        }
    },
}


def run_of(case: str, steps: int = 6, batch: int = 2, **sections: dict[str, object]) -> TrainingRun:
    """A resolved run of a case; `sections` are merged into those of the spec."""
    training = {"steps": steps, "batchSize": batch, "learningRate": RATE} | sections.pop("training", {})
    (technique,) = METHODS[case]
    return make_run(technique, method=METHODS[case], training=training, **sections)
