"""A CLIP tokenizer whose merges make each known word one token; every other text falls back to bytes."""

from collections import Counter
from itertools import pairwise

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from .captions import WORDS

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 32


def learn_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Byte pair encoding, most frequent pair first (ties in alphabetical order), until every word is one token."""
    spelled = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for letters in spelled.values() for pair in pairwise(letters))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, letters in spelled.items():
            spelled[word] = _merge(letters, best)


def _merge(letters: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for letter in letters:
        if merged and (merged[-1], letter) == pair:
            merged[-1] += letter
        else:
            merged.append(letter)
    return merged


def build_tokenizer() -> CLIPTokenizer:
    """CLIP's byte alphabet, the merges for WORDS, and the two special tokens last, as in CLIP."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learn_merges(WORDS)
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)
