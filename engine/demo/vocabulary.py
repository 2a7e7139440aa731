"""The demo's two tokenizers: hand-written word vocabularies, because trained ones differ from run to run."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from engine.demo.grammar import WORDS

TOKEN_LIMIT = 32


def _tokenizer(tokens: tuple[str, ...], unknown: str, template: str) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    used = [(token, vocabulary[token]) for token in template.split() if token != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    return tokenizer


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """Words, then `</s>`; padded with `<pad>` (0)."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(("<pad>", "</s>", "<unk>", *WORDS), "<unk>", "$A </s>"),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TOKEN_LIMIT,
    )


def clip_tokenizer() -> PreTrainedTokenizerFast:
    """`<|startoftext|>`, words, `<|endoftext|>`; padded with `<|endoftext|>`, as CLIP is."""
    start, end = "<|startoftext|>", "<|endoftext|>"  # the end has the highest id: CLIP's old pooling takes the argmax
    return PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer((*WORDS, "<|unknown|>", start, end), "<|unknown|>", f"{start} $A {end}"),
        bos_token=start,
        eos_token=end,
        pad_token=end,
        unk_token="<|unknown|>",
        model_max_length=TOKEN_LIMIT,
    )
