"""The graph of a prompt: all ablations by the engine, against one whole hooked forward pass for each.

    python benchmarks/prompt_graph.py [--quick] [--json]

At the last token of a text, every active feature and every error is ablated on its own, and its effect on everything it
writes into is read. The baseline is what researchers usually write: one hooked forward pass per effect, reading the
child's activation at its site. Passes are timed on a sample and scaled, once to one pass per effect, and once to one
pass per ablation, like a careful script that reads all children in the same pass. The engine's time covers the whole
graph, from tokens to tables, without random graphs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import saeflow
from _timing import Row, arguments, peak_memory, show, wall_and_cpu
from causal import random_dictionary
from saeflow import Dictionary, FeatureId, LanguageModel, Part, PromptGraph, Rescale, Site
from saeflow.demo.texts import texts as demo_texts
from saeflow.flow.trace import Matches
from saeflow.interventions import Positions
from saeflow.matching.direct import DirectMatches
from saeflow.prompt_graph.trace import trace_text

SEED, N_TOKENS, N_ACTIVE = 0, 64, 32


@dataclass(frozen=True)
class World:
    """A model, its dictionaries, their matches, and a text."""

    name: str
    model: LanguageModel
    dictionaries: dict[Site, Dictionary]
    matches: Matches
    text: str

    def graph(self) -> PromptGraph:
        """The complete graph of the last token, without any pruning."""
        return trace_text(
            self.text,
            self.dictionaries,
            model=self.model,
            atlas=self.matches,
            pruning=None,
            kept=0.0,
            fidelity=False,
            max_length=N_TOKENS,
        )


def demo() -> World:
    """The demo model, with 6 layers of 3 sites each."""
    saes = saeflow.load_dictionaries("demo")
    model = saeflow.load_model("demo").as_trained(saes)
    [text] = demo_texts("textbooks", 1, SEED)
    return World("demo pack", model, dict(saes), saeflow.open_atlas("demo"), text)


def smollm2_shape(*, quick: bool) -> World:
    """A random Llama in the shape of SmolLM2-135M, with random dictionaries at all sites."""
    torch.manual_seed(SEED)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": 512}
    large = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49_152}
    config = LlamaConfig(
        **(small if quick else large),
        num_attention_heads=9 if not quick else 4,
        num_key_value_heads=3 if not quick else 2,
    )
    hf_model = LlamaForCausalLM(config)
    for parameter in hf_model.parameters():  # with the default std of 0.02 the embeddings would dominate the stream
        if parameter.dim() == 2:
            parameter.data *= 2
    model = LanguageModel(hf_model, _Words(config.vocab_size))
    text = " ".join(map(str, torch.randint(config.vocab_size, (N_TOKENS,)).tolist()))
    tokens = model.tokenize([text])
    sites = [Site(layer, part) for layer, part in product(range(config.num_hidden_layers), Part)]
    held = model.capture(tokens, sites)
    made = {site: random_dictionary(site, held[site][0], 256 if quick else 2_304, N_ACTIVE) for site in sites}
    return World("SmolLM2-135M's shape, random", model, made, DirectMatches(made), text)


class _Words(PreTrainedTokenizerFast):
    """A tokenizer whose tokens are numbers, for a random model."""

    def __init__(self, n: int) -> None:
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from tokenizers.pre_tokenizers import WhitespaceSplit

        tokenizer = Tokenizer(WordLevel({str(i): i for i in range(n)}, unk_token="0"))  # noqa: S106  (a token of text)
        tokenizer.pre_tokenizer = WhitespaceSplit()
        super().__init__(tokenizer_object=tokenizer)


def by_whole_passes(world: World, pairs: list[tuple[str, str]]) -> list[float]:
    """The child's activation with its parent ablated, from one hooked forward pass per (parent, child) pair."""
    tokens = world.model.tokenize([world.text], max_length=N_TOKENS)
    found: list[float] = []
    for parent, child in pairs:
        (removed, _, position), read = parent.partition("@"), FeatureId.parse(child.partition("@")[0])
        edit = Rescale((FeatureId.parse(removed),), tokens=Positions((int(position),)))
        with world.model.intervening([edit], world.dictionaries), torch.no_grad():
            h = world.model.capture(tokens, [read.site], stop_after_last=False)[read.site]
            found.append(float(world.dictionaries[read.site].encode(h[0, int(position)])[read.index]))
    return found


def measure(world: World, *, quick: bool) -> tuple[list[Row], dict[str, float]]:
    """The rows and speed-ups for one model."""
    graph = world.graph()
    features = graph.edges[(graph.edges["link"] != "logit") & ~graph.edges["parent"].str.contains("error")]
    draw = random.Random(SEED)  # noqa: S311  (a sample, no secret)
    sample = features.iloc[draw.sample(range(len(features)), 5)]
    pairs = list(zip(sample["parent"], sample["child"], strict=True))
    passes = partial(by_whole_passes, world, pairs)
    taken = wall_and_cpu({"graph": world.graph, "passes": passes}, 3 if quick else 7)
    (graph_wall, graph_cpu), (one, one_cpu) = taken["graph"], (seconds / len(pairs) for seconds in taken["passes"])
    n_effects, n_removals = len(graph.edges), int((graph.nodes["kind"] != "logit").sum())
    # check: the clean activation minus the change in the graph must equal the activation from the pass
    values = graph.nodes.set_index("node")["activation"]
    after = [float(values[edge.child] - edge.change) for edge in sample.itertuples()]
    apart = max(abs(a - b) / max(abs(a), abs(b), 1e-6) for a, b in zip(after, passes(), strict=True))
    n_tokens, n_layers = len(graph.tokens), world.model.n_layers
    size = f"{n_layers} layers, {n_tokens} tokens, {n_removals:,} removals, {n_effects:,} effects"
    scaled = f"timed on {len(pairs)} passes and scaled"
    rows = [
        Row(f"{world.name}: a pass an effect", size, one * n_effects, note=scaled),
        Row(f"{world.name}: a pass a removal", size, one * n_removals, note=scaled),
        Row(
            f"{world.name}: the graph",
            size,
            graph_wall,
            one * n_effects / graph_wall,
            "a pass an effect",
            cpu_ratio=one_cpu * n_effects / graph_cpu,
        ),
    ]
    name = "demo" if world.name.startswith("demo") else "smollm2"
    return rows, {
        f"speedup_by_effect_{name}": one * n_effects / graph_wall,
        f"speedup_by_removal_{name}": one * n_removals / graph_wall,
        f"cpu_seconds_{name}": graph_cpu,
        f"max_relative_difference_{name}": apart,
    }


def main() -> None:
    """Measure, check and print."""
    options = arguments(__doc__).parse_args()
    rows, figures = measure(demo(), quick=options.quick)
    more, others = measure(smollm2_shape(quick=options.quick), quick=options.quick)
    memory = peak_memory(partial(smollm2_shape, quick=options.quick), World.graph)
    rows += [*more[:-1], replace(more[-1], extra_mb=memory)]
    show(rows, as_json=options.json, **figures, **others)


if __name__ == "__main__":
    main()
