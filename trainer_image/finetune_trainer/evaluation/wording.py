"""Which prompts name the subject, which name its class, and which neither. Pure functions of words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_api import TrainingRun
from finetune_api.methods import MethodSpec
from finetune_api.resolve import prior_of, prompt_of

Kind = Literal["subject", "class", "other"]

# Words that say how a picture is made or hold a caption together, and never what is in it.
_GLUE = """a an the of in on at with and to by this that one my
photo photograph picture image drawing painting rendering render portrait depiction illustration art style
close-up closeup cropped good clean"""
GLUE = frozenset(_GLUE.split())


@dataclass(frozen=True)
class Wording:
    """The words that stand for the subject and for its class."""

    subject: frozenset[str]
    """The rare words or placeholders; a prompt with one of them asks for the subject."""
    class_words: frozenset[str]
    """What the subject is one of; empty where that is not known."""
    subject_prompt: str
    class_prompt: str | None
    """A prompt for the class without the subject."""

    def kind(self, prompt: str) -> Kind:
        """What `prompt` asks for."""
        words = words_of(prompt)
        if self.subject & set(words):
            return "subject"
        return "class" if self.class_words and self.class_words <= set(words) else "other"

    def without_subject(self, prompt: str) -> str:
        """`prompt` as somebody reads it who does not know the rare word."""
        return " ".join(word for word in prompt.split() if not self.subject & set(words_of(word)))


def wording_of(method: MethodSpec) -> Wording:
    """The words of a technique's settings.

    New words are named as such. Otherwise the subject's words are those that the prompt has and the class prompt has
    not; without a class prompt, the first word with a meaning is the rare one ("a photo of **sks** dog"), as is the
    custom since DreamBooth (https://arxiv.org/abs/2208.12242).
    """
    technique = method.textual_inversion or method.lora
    tokens = (technique.tokens if technique is not None else None) or ()
    if tokens:
        return _of_placeholders(method, [token.placeholder for token in tokens], tokens[0].initializer)
    prompt, prior = prompt_of(method), prior_of(method)
    meaning = [word for word in words_of(prompt) if word not in GLUE]
    if prior is not None:
        class_words = frozenset(words_of(prior.class_prompt)) - GLUE
        subject = frozenset(meaning) - class_words
        return Wording(subject or frozenset(meaning), class_words, prompt, prior.class_prompt)
    subject, class_words = frozenset(meaning[:1] or words_of(prompt)), frozenset(meaning[1:])
    bare = Wording(subject, class_words, prompt, None)
    return Wording(subject, class_words, prompt, bare.without_subject(prompt) if class_words else None)


def judged_prompts(wording: Wording, prompts: Iterable[str]) -> tuple[str, ...]:
    """`prompts`, with one for the subject and one for its class before them where they name none: without these
    there is no fidelity and no leak."""
    found = list(dict.fromkeys(prompts))
    kinds = {wording.kind(prompt) for prompt in found}
    if "class" not in kinds and wording.class_prompt is not None and wording.class_prompt not in found:
        found.insert(0, wording.class_prompt)
    if "subject" not in kinds:
        found.insert(0, wording.subject_prompt)
    return tuple(found)


def drawn_prompts(run: TrainingRun) -> tuple[str, ...]:
    """What a run draws before and after, in the order of the pictures' names: a judged one may add prompts of its own
    before those of validation."""
    prompts = run.validation.prompts or ()
    return judged_prompts(wording_of(run.method), prompts) if run.judgement is not None else prompts


def words_of(text: str) -> list[str]:
    """The words of a prompt in small letters, without the commas and full stops around them."""
    return [bare for word in text.lower().split() if (bare := word.strip(".,;:!?\"'()“”"))]


def _of_placeholders(method: MethodSpec, placeholders: Sequence[str], initializer: str | None) -> Wording:
    subject = frozenset(word for placeholder in placeholders for word in words_of(placeholder))
    prior, prompt = prior_of(method), prompt_of(method)
    if not subject & set(words_of(prompt)):
        # captions that do not say the new word would judge something else
        prompt = f"a photo of {placeholders[0]}"
    if prompt == placeholders[0]:
        prompt = f"a photo of {prompt}"
    class_prompt = prior.class_prompt if prior is not None else f"a photo of {initializer}" if initializer else None
    class_words = frozenset(words_of(class_prompt)) - GLUE if class_prompt else frozenset()
    return Wording(subject, class_words, prompt, class_prompt)
