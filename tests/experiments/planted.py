"""A Llama whose weights are set by hand, with dictionaries that say what truly causes what.

Three layers; directions are the rows of a random orthogonal matrix, so nothing lies along an axis. A token
writes its own direction and `common`; layers 0 and 2 add nothing; layer 1 computes:

    target of 1/res   true predecessors     on the tokens
    carried           0/res                 `carry`
    written           1/mlp                 `write`     the MLP reads write_cause and writes `written`
    attended          1/att                 after a `source`: attention averages source_cause over the tokens
    both              0/res and 1/mlp       `double`    carried, and the MLP writes as much again
    orphan            none                  `orphan`    the MLP writes it and no predecessor fires for it
    common            0/res                 all         active everywhere: the wrong predecessor of the others

Every dictionary also has five silent decoys for each of these names at cosines 0.30 down to 0.18, so that the
closest row of a site without a true predecessor is a silent one, never a tie at zero. Rows are shuffled
differently at every site.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saeflow.ids import FeatureId, Part, Site
from saeflow.sources.activations import JumpReLU
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel

N_LAYERS, D_MODEL, LAYER = 3, 32, 1
CAUSES = ("write_cause", "source_cause", "orphan_cause")
TARGETS = {
    "carried": (Part.RES,),
    "written": (Part.MLP,),
    "attended": (Part.ATT,),
    "both": (Part.RES, Part.MLP),
    "orphan": (),
    "common": (Part.RES,),
}
"""A feature of 1/res -> the parts whose predecessor truly causes it; layer 0 for res."""

NAMES = (*TARGETS, *CAUSES)
FILLER = len(NAMES)
DECOYS = range(len(NAMES) + 1, len(NAMES) + 6)
TOKENS = {
    "carry": "carried",
    "write": "write_cause",
    "source": "source_cause",
    "double": "both",
    "orphan": "orphan_cause",
    "nothing": None,
}
TEXT = "nothing carry source write nothing double orphan carry write double nothing"
"""With the begin-of-text token, token t is word t - 1."""

PRESENT = {
    Site(0, Part.RES): ("carried", "both", "common", *CAUSES),
    Site(1, Part.MLP): ("written", "both"),
    Site(1, Part.ATT): ("attended",),
    Site(1, Part.RES): NAMES,
    Site(2, Part.RES): NAMES,
}
"""The features that can fire at each site; all others are silent decoys."""

THRESHOLD, SILENT = 0.1, 1e4


@dataclass(frozen=True)
class Planted:
    """The model, its dictionaries at every site, and the row of each name."""

    model: LanguageModel
    dictionaries: dict[Site, Dictionary]
    rows: dict[tuple[Site, str], int]

    def feature(self, site, name):
        """The feature of a name: `feature("1/res", "written")`."""
        site = Site.parse(site) if isinstance(site, str) else site
        return FeatureId(site, self.rows[site, name])

    def predecessors(self, target):
        """The true predecessors of a target of 1/res."""
        return tuple(self.feature(Site(LAYER - (part is Part.RES), part), target) for part in TARGETS[target])

    def tokens(self, text=TEXT):
        """The text as the model's tokens."""
        return self.model.tokenize([text])


def positions(word, text=TEXT):
    """The tokens at which a word stands, counted with the begin-of-text token."""
    return [t for t, found in enumerate(text.split(), start=1) if found == word]


def plant(seed=0, dtype=torch.float32):
    """The planted model and its dictionaries."""
    make = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=make, dtype=torch.float64))[0].to(dtype)
    dictionaries, rows = {}, {}
    for layer, part in product(range(N_LAYERS), Part):
        site = Site(layer, part)
        order = torch.randperm(len(NAMES) * (1 + len(DECOYS)), generator=make)
        dictionaries[site], found = _dictionary(site, basis, order)
        rows |= {(site, name): row for name, row in found.items()}
    return Planted(LanguageModel(_model(basis, make), _tokenizer()), dictionaries, rows)


def _dictionary(site, basis, order):
    directions, thresholds, names = [], [], []
    for i, name in enumerate(NAMES):
        if name in PRESENT.get(site, ()):
            directions.append(basis[i])
            thresholds.append(THRESHOLD)
            names.append(name)
        for j, decoy in enumerate(DECOYS):
            cosine = 0.30 - 0.03 * j
            directions.append(cosine * basis[i] + (1 - cosine**2) ** 0.5 * basis[decoy])
            thresholds.append(SILENT)
            names.append(None)
    order = [int(i) for i in order if i < len(names)]
    W = torch.stack(directions)[order]
    made = Dictionary(
        site,
        tap=Tap.of(site.part),
        W_enc=W,
        b_enc=torch.zeros(len(W), dtype=W.dtype),
        W_dec=W,
        b_dec=torch.zeros(D_MODEL, dtype=W.dtype),
        activation=JumpReLU(torch.tensor(thresholds, dtype=W.dtype)[order]),
    )
    return made, {names[old]: new for new, old in enumerate(order) if names[old] is not None}


def _model(basis, make):
    """Layer 1's MLP and attention as the head of the file says; all else adds nothing."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=3 + len(TOKENS),
        hidden_size=D_MODEL,
        intermediate_size=3,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=4,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval().to(basis.dtype)
    at = {name: basis[i] for i, name in enumerate(NAMES)}
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        for row, name in enumerate([None] * 3 + list(TOKENS.values())):
            own = basis[FILLER] if name is None else at[name]
            model.model.embed_tokens.weight[row] = 2.0 * own + at["common"]
        block = model.model.layers[LAYER]
        read = torch.stack([at["write_cause"], at["both"], at["orphan_cause"]])
        block.mlp.gate_proj.weight.copy_(0.5 * read)
        block.mlp.up_proj.weight.copy_(0.5 * read)
        wrote = torch.stack([at["written"], at["both"], at["orphan"]])
        block.mlp.down_proj.weight.copy_(0.3 * wrote.T)
        # no query and no key: every token attends to all before it alike
        block.self_attn.q_proj.weight.zero_()
        block.self_attn.k_proj.weight.zero_()
        block.self_attn.v_proj.weight.zero_()[0] = at["source_cause"]
        block.self_attn.o_proj.weight[:, 0] = 4.0 * at["attended"]
        model.lm_head.weight.copy_(torch.randn(config.vocab_size, D_MODEL, generator=make) * 0.5)
    return model


def _tokenizer():
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {word: 3 + i for i, word in enumerate(TOKENS)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))  # noqa: S106  (a token of text)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
