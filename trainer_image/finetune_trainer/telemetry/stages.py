"""The stages of a run in words for people."""

from __future__ import annotations

from finetune_api.progress import Stage

WORDS: dict[Stage, str] = {
    "Starting": "Starting",
    "Fetching": "Fetching base model and pictures",
    "Preparing": "Loading the base model",
    "DrawingClassImages": "Drawing class pictures",
    "DrawingBefore": "Drawing with the base model",
    "Training": "Training",
    "DrawingAfter": "Drawing with the trained model",
    "Evaluating": "Writing the report",
    "Exporting": "Writing the weights",
    "Sampling": "Drawing pictures",
    "Publishing": "Publishing",
    "Done": "Done",
}
