"""What was tried for karma_best.py, to be asked on W2b:

    karmafunnel table karma_best_trials LOG --window W2b --seed 0 --out out/best-trials

Width, what stands beside the language model's vectors, passes, ids, and half the rate. The best
mean of HR@10, HR@50 and HR@200 is written into karma_best.py.
"""

from dataclasses import replace

from karmafunnel.benchmarks.studies.karma_best import TEXTS, UNTRAINED, with_texts
from karmafunnel.benchmarks.studies.karma_controls import WORDS, settings
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder
from karmafunnel.models.karma import KARMA
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("interest", k=200)
against = "frozen sentence encoder"
measures = ("HR@10", "HR@50", "HR@200", "HR@200 by target")
seeds = (0,)

WORDS_ALONE, SENTENCES = TEXTS[:1], TEXTS[1:]


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    chosen = settings(log)["action"]
    rate, epochs = chosen.get("rate", KARMA.rate), chosen.get("epochs", KARMA.epochs)

    def tried(**others: object) -> KARMA:
        return with_texts(log, "action", **others)

    found: dict[str, Embedder] = {
        "frozen sentence encoder": SENTENCES[0],
        "TF-IDF, 128": WORDS,
        "TF-IDF, 256": replace(WORDS, dim=256),
        "both, side by side": UNTRAINED,
        "words, 128": tried(beside=WORDS_ALONE, dim=128, epochs=epochs),
        "words, 256": tried(beside=WORDS_ALONE, dim=256, epochs=epochs),
        "sentences, 256": tried(beside=SENTENCES, dim=256, epochs=epochs),
        "both, 128": tried(dim=128, epochs=epochs),
        "both, 256": tried(dim=256, epochs=epochs),
        "both, 384": tried(epochs=epochs),
        "both, 384, no ids": tried(epochs=epochs, ids=False),
        "both, 384, half the passes": tried(),
        "both, 384, half the passes, no ids": tried(ids=False),
        "words, 384, half the passes": tried(beside=WORDS_ALONE),
        "both, 384, half the passes, half the rate": tried(rate=rate / 2),
    }
    return {name: {"interest": value} for name, value in found.items()}
