"""Spelling: tokens and completions keep the text they have inside a text, with tokenizers of every kind."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from tiny_models import TEXTS, tiny_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saeflow.ids import Part, Site
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Spelling
from saeflow.steering.generate import Request, Sampling, generate

TEXT = "So he threw his hat, a girl named Zoë ate 世界 🙂, and he threw."
WORDS = [TEXT, "he threw a hat", "a girl named Zoe", "so he ate and he threw his hat"] * 3
NAMED = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
SPECIAL = list(NAMED.values())


def byte_level():
    """As GPT-2 and the Llama 3s: bytes as letters, the space in front of a word part of its token."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    train = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(WORDS, train)
    return made


def sentencepiece():
    """As Llama 2 and TinyLlama: a space put before the text and stripped when decoding, unknown characters as bytes."""
    pieces = [
        "\u2581So",
        "\u2581he",
        "\u2581threw",
        "\u2581his",
        "\u2581a",
        "\u2581girl",
        "\u2581hat",
        "hat",
        "\u2581",
        "a",
        ",",
    ]
    pieces += [chr(c) for c in range(ord("b"), ord("z") + 1)] + ["S", "Z", "."]
    vocab = {piece: i for i, piece in enumerate([*SPECIAL, *(f"<0x{b:02X}>" for b in range(256)), *pieces])}
    merges = []
    for piece in sorted((p for p in pieces if len(p) > 1), key=len):
        for n in range(2, len(piece) + 1):
            left, right = piece[: n - 1], piece[n - 1]
            vocab.setdefault(piece[:n], len(vocab))
            if (left, right) not in merges:
                merges.append((left, right))
    made = Tokenizer(models.BPE(vocab, merges, unk_token=SPECIAL[0], byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def metaspace():
    """As Mistral's newer files and T5: the same by one Metaspace, with a unigram model."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        WORDS, trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token=SPECIAL[0])
    )
    return made


def loaded(backend):
    return PreTrainedTokenizerFast(tokenizer_object=backend, **NAMED)


KINDS = {"byte-level": byte_level, "sentencepiece": sentencepiece, "metaspace": metaspace}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_tokens_put_together_are_the_text_wherever_it_is_cut(kind):
    tokenizer = loaded(KINDS[kind]())
    spelling, ids = Spelling(tokenizer), tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert "".join(spelling.tokens(ids)).removeprefix(" ") == TEXT == tokenizer.decode(ids)
    for start in range(len(ids)):
        after = spelling.tokens(ids[start:])
        assert len(after) == len(ids) - start
        # no space is lost, and no character taken apart but the one that is cut
        assert f" {TEXT}".endswith("".join(after).lstrip("\ufffd"))
    shown = [spelling.text(ids[:stop]).rstrip("\ufffd") for stop in range(len(ids) + 1)]
    assert all(later.startswith(earlier) for earlier, later in pairwise(shown))


def test_a_character_is_with_its_last_byte_and_what_is_left_of_one_is_marked():
    tokenizer = loaded(sentencepiece())
    spelling, of_bytes = Spelling(tokenizer), lambda text: [3 + byte for byte in text.encode()]
    assert spelling.tokens(of_bytes("世é")) == ["", "", "世", "", "é"]
    assert spelling.tokens(of_bytes("世界")[1:5]) == ["\ufffd"] * 4
    assert spelling.tokens(of_bytes("世界")[1:]) == ["\ufffd", "\ufffd", "", "", "界"]
    he = tokenizer("he", add_special_tokens=False)["input_ids"]
    assert spelling.text([*of_bytes("🙂")[:3], *he]) == "\ufffd\ufffd\ufffd he"


@kinds
def test_a_token_alone_keeps_the_space_that_tells_it_from_another(kind):
    tokenizer = loaded(KINDS[kind]())
    spelling = Spelling(tokenizer)
    texts = [spelling.token(token) for token in tokenizer(" he threw", add_special_tokens=False)["input_ids"]]
    assert "".join(texts).endswith(" he threw")
    whole = [t for t in map(spelling.token, range(3, len(tokenizer))) if "\ufffd" not in t and len(t) > 1]
    assert len(whole) == len(set(whole)), "no two tokens are shown alike"


def test_completions_and_promoted_tokens_keep_their_first_space():
    tokenizer = loaded(sentencepiece())
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = LanguageModel(LlamaForCausalLM(config), tokenizer)
    girl = tokenizer.convert_tokens_to_ids("\u2581girl")
    head = model.hf_model.get_output_embeddings().weight
    with torch.no_grad():
        head.zero_()
        head[girl] = 1.0
    with model.intervening({Site(0, Part.RES): lambda h: h.abs() + 1}):  # so that its logit is the largest
        assert model.generate(["a"], max_new_tokens=2, temperature=0) == [[" girl girl"]]
        made = generate(model, None, [Request("a", 0)], Sampling(max_new_tokens=2, temperature=0))
    assert made[0].text == " girl girl"
    assert model.logit_lens(head[girl][None], k=1)[0][0][:2] == (" girl", girl)


def test_a_tokenizer_of_words_spells_them_as_it_decodes_them():
    model = tiny_model("llama")
    ids = model.tokenize(TEXTS[:1], add_bos=False).input_ids[0].tolist()
    assert "".join(model.spelling.tokens(ids)).strip() == TEXTS[0]
