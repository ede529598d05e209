"""Tokenizers of every kind that the C++ runtime reads, trained on the spot on a few thousand words."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from dexport.exporter.pipelines.family import Text
from dexport.exporter.text import tokenizer_json
from tests.pipelines import save_clip_tokenizer
from tests.pipelines_pixart import tiny_t5_tokenizer

WORDS = """
a an the small large red green blue Yellow CIRCLE square triangle left right of at top bottom photo Café naïve façade straße œuvre
北京 東京タワー 서울 привет мир שלום עולם مرحبا बालकहिन्दी ภาษาไทย ﬁne ①②③ Ⅷ ½ ｆｕｌｌ don't we're I'll 1920s 4k
(masterpiece:1.2) <lora:x> --ar 16:9 @user #tag $5.00 100% a.b,c;d!
""".split()

_LENGTH = 24
_SHAPES = Path(__file__).parents[3] / "examples" / "shapes-t2i" / "pipeline" / "tokenizer" / "tokenizer.json"


def corpus() -> list[str]:
    chance = random.Random(0)
    return [" ".join(chance.choices(WORDS, k=chance.randint(3, 14))) for _ in range(1000)]


def _limited(tokenizer: Tokenizer, direction: str = "right") -> str:
    tokenizer.enable_truncation(_LENGTH, direction=direction)
    tokenizer.enable_padding(length=_LENGTH, pad_id=0, direction=direction)
    return tokenizer.to_str()


def shapes() -> str:
    """The one of the reference pipeline: Unigram over whole words."""
    return _limited(Tokenizer.from_file(str(_SHAPES)))


def _sentencepiece(rule: str) -> tuple[list[tuple[str, float]], bytes]:
    """Pieces with scores, and the charsmap of a normalization rule, as SentencePiece's own trainer makes them."""
    from sentencepiece import SentencePieceTrainer, sentencepiece_model_pb2

    written = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=written,
        vocab_size=600,
        hard_vocab_limit=False,
        character_coverage=0.98,
        normalization_rule_name=rule,
        minloglevel=2,
    )
    model: Any = sentencepiece_model_pb2.ModelProto.FromString(written.getvalue())  # type: ignore[attr-defined]
    return [(piece.piece, piece.score) for piece in model.pieces], model.normalizer_spec.precompiled_charsmap


def _unigram(rule: str, byte_fallback: bool, scheme: str, split: bool) -> Tokenizer:
    pieces, charsmap = _sentencepiece(rule)
    pieces += [(f"<0x{byte:02X}>", 0.0) for byte in range(256) if byte_fallback]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, byte_fallback))
    steps = [normalizers.Strip(), normalizers.Precompiled(charsmap), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    return tokenizer


def t5() -> str:
    """As transformers converts T5's: charsmap, white space, "▁" before every word, </s> behind the prompt."""
    tokenizer = _unigram("nmt_nfkc", False, "always", True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.add_special_tokens(["</s>", "<pad>", *(f"<extra_id_{index}>" for index in range(10))])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A $B", special_tokens=[("</s>", 2)])
    return _limited(tokenizer)


def unigram_with_bytes() -> str:
    return _limited(_unigram("nmt_nfkc_cf", True, "never", False), "left")


def unigram_with_added_tokens() -> str:
    """Tokens with every flag, and "▁" only before the first word."""
    tokenizer = _unigram("nmt_nfkc", False, "first", True)
    tokenizer.add_special_tokens(["<pad>", "</s>"])
    flags = {"red": {"lstrip": True}, "[MASK]": {"single_word": True, "rstrip": True}, "Blue": {"lstrip": True, "rstrip": True}}
    tokenizer.add_tokens([AddedToken(text, normalized=text != "[MASK]", **kinds) for text, kinds in flags.items()])
    return _limited(tokenizer)


def clip() -> str:
    """CLIP's pattern, cleaning and end-of-word suffix."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    steps = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    split = pre_tokenizers.Split(words, "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("<|endoftext|>", 1), ("<|startoftext|>", 0), add_prefix_space=False)
    return _limited(tokenizer)


def byte_level() -> str:
    """GPT-2's, with compatibility characters composed first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    template = processors.TemplateProcessing(single="<end> $A <end>", pair="$A $B", special_tokens=[("<end>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template])
    return _limited(tokenizer)


def bpe_with_bytes() -> str:
    """SentencePiece's BPE: spaces as "▁", unknown characters as bytes."""
    return _spaced_bpe(fuse=True, fallback=True)


def bpe_with_unknowns() -> str:
    return _spaced_bpe(fuse=False, fallback=False)


def _spaced_bpe(*, fuse: bool, fallback: bool) -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=fuse, byte_fallback=fallback))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256) if fallback)]
    trainer = trainers.BpeTrainer(vocab_size=500, limit_alphabet=60, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(corpus()[:200], trainer)
    return _limited(tokenizer)


def bert() -> str:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=20))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(corpus(), trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return _limited(tokenizer)


def words() -> str:
    """Whole words, after every split that is used nowhere else."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, **{word.lower(): index for index, word in enumerate(WORDS, 1)}}, "[UNK]"))
    steps = [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Strip(right=False)]
    tokenizer.normalizer = normalizers.Sequence(steps)
    splits = [
        pre_tokenizers.Whitespace(),
        pre_tokenizers.Punctuation("merged_with_previous"),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split("l", "merged_with_next"),
        pre_tokenizers.Split(Regex("[aeiou]"), "contiguous", invert=True),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.add_tokens(["New York"])
    tokenizer.enable_padding(pad_to_multiple_of=8)
    return tokenizer.to_str()


def exported(folder: Path) -> dict[str, str]:
    """What the exporter puts into bundles: every cleaning that a pipeline does, in the normalizer."""
    tiny_t5_tokenizer().save_pretrained(folder / "t5")
    save_clip_tokenizer(folder / "clip", "<|endoftext|>")
    kinds: dict[str, tuple[str, tuple[str, ...]]] = {
        "exported_pixart": ("t5", ("lower", "strip")),
        "exported_wan": ("t5", ("html", "html", "whitespace", "strip")),
        "exported_clip": ("clip", ()),
    }
    return {
        name: tokenizer_json(folder, Text(name="t", folder=tokenizer, length=_LENGTH, ids="ids", clean=clean))
        for name, (tokenizer, clean) in kinds.items()
    }


def damaged_charsmap(tokenizer: str, at: int) -> str:
    """The same tokenizer with one byte of its charsmap changed."""
    document = json.loads(tokenizer)
    step = next(part for part in document["normalizer"]["normalizers"] if part["type"] == "Precompiled")
    content = bytearray(base64.b64decode(step["precompiled_charsmap"]))
    content[at % len(content)] ^= 0xFF
    step["precompiled_charsmap"] = base64.b64encode(content).decode()
    return json.dumps(document)


TRAINED: dict[str, Callable[[], str]] = {
    maker.__name__: maker
    for maker in (
        shapes,
        t5,
        unigram_with_bytes,
        unigram_with_added_tokens,
        clip,
        byte_level,
        bpe_with_bytes,
        bpe_with_unknowns,
        bert,
        words,
    )
}
