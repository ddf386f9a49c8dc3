"""Language first, then action, beside both at once, where item texts are read by the model in
training and the data is passed over once:

    karmafunnel table karma_order LOG --out out/order

Each action loss has its own control. Rates of the orders under the softmax in the batch are the
best of three on W2b (karma_order_trials.py; the highest was tried before pre-training changed);
other rows have no trials, and 2e-4. `gen` and `rec` weigh .1 and .3, and the language model itself
generates for both. The language training reads 200,000 tokens of histories. On Amazon Office that
took .5 to .9 of a pass over the actions, so "equal compute", three passes, costs more than it.
"""

from dataclasses import replace
from typing import Any

from karmafunnel.benchmarks.studies import karma_industrial
from karmafunnel.benchmarks.studies.karma_controls import sentence_encoder
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder, RandomVectors, TfidfSVD
from karmafunnel.models.karma import KARMA, FrozenLM, InBatch, LanguageFirst, Pairwise, Qwen
from karmafunnel.models.karma.action import ActionLoss
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("interest", k=200)
against = "in-batch: action-only"
measures = ("HR@10", "HR@50", "HR@200", "HR@200 by target")
seeds = (0, 1)

LOSSES: dict[str, ActionLoss] = {"in-batch": InBatch(), "pairwise": Pairwise()}
BOTH: dict[str, Any] = {"gen": 0.1, "rec": 0.3, "decoder": "lm"}
READ = LanguageFirst(tokens=200_000)
SHUFFLED = replace(READ, shuffled=True)
LORA = Qwen(lora=8)
LORA_READ = replace(READ, backbone=LORA, rate=3e-3)

# what each row trains, beside its loss and its rate
ORDERS: dict[str, dict[str, Any]] = {
    "action-only": {},
    "both at once": BOTH,
    "both at once, weights falling to 0": {**BOTH, "schedule": "falling"},
    "language first, then action": {"backbone": READ},
    "language first, then both": {"backbone": READ, **BOTH},
    "shuffled histories first, then action": {"backbone": SHUFFLED},
    "action-only, equal compute": {"epochs": 3},
    "action-only, last two layers": {"trained": 2},
}
LOW_RANK: dict[str, dict[str, Any]] = {
    "action-only, LoRA": {"backbone": LORA},
    "language first, then action, LoRA": {"backbone": LORA_READ},
}
# the best on W2b by the mean of HR@10, HR@50 and HR@200; a row that is not named: RATE
RATE = 2e-4
CHOSEN: dict[str, float] = {"in-batch: action-only, equal compute": 1e-4}


def base(log: Log) -> KARMA:
    return replace(karma_industrial.base(log), rate=RATE)


def trained(log: Log) -> dict[str, KARMA]:
    """Every order under every loss, and low-rank updates."""
    found = {}
    for loss, value in LOSSES.items():
        for order, settings in ORDERS.items():
            found[f"{loss}: {order}"] = replace(base(log), loss=value, **settings)
    for order, settings in LOW_RANK.items():  # in-batch alone, for its cost
        found[f"in-batch: {order}"] = replace(base(log), **settings)
    return found


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    found: dict[str, Embedder] = {}
    for name, value in trained(log).items():
        found[name] = replace(value, rate=CHOSEN.get(name, RATE))
    found |= {
        "frozen LM": FrozenLM(),
        "frozen LM, whitening": FrozenLM(after="whitening"),
        "frozen LM, language first": FrozenLM(backbone=READ),
        "frozen LM, language first, whitening": FrozenLM(backbone=READ, after="whitening"),
        "TF-IDF": TfidfSVD(dim=128),
        "random": RandomVectors(),
    }
    found |= sentence_encoder(log)
    return {name: {"interest": value} for name, value in found.items()}
