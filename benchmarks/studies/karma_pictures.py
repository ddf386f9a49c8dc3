"""What pictures add, as an input of KARMA and as something its interest must tell:

    karmafunnel world logs/pictures --items 4000 --users 1500 --requests 10000 --images
    karmafunnel table karma_pictures logs/pictures --out out/pictures

The features are those of a small encoder that learns on the log's own pictures, frozen. On a World
a picture shows the true colour and pattern, of which the text may be silent or wrong. Three weights
of `see` stand side by side; its other forms have the middle one.
"""

from dataclasses import replace

from karmafunnel.benchmarks.studies.karma_controls import base, sentence_encoder, settings
from karmafunnel.log import Log
from karmafunnel.models.embedders import Embedder
from karmafunnel.models.karma import SelfSupervised
from karmafunnel.stages.recall import VectorRecall

funnel = VectorRecall("interest", k=200)
against = "+gen+rec"


def rows(log: Log) -> dict[str, dict[str, Embedder]]:
    plain, chosen = base(log), settings(log)
    action, both = (replace(plain, **chosen[name]) for name in ("action", "both"))
    pictures = replace(both, visual=SelfSupervised())
    see, alone = replace(pictures, see=0.3), replace(action, visual=SelfSupervised())
    found: dict[str, Embedder] = {
        "+gen+rec": both,
        "+gen+rec, pictures": pictures,
        "+gen+rec+see 0.1": replace(pictures, see=0.1),
        "+gen+rec+see 0.3": see,
        "+gen+rec+see 1": replace(pictures, see=1.0),
        "+gen+rec+see 0.3, cosine": replace(see, vector="cosine"),
        "+gen+rec+see 0.3, diffusion": replace(see, vector="diffusion"),
        "action-only": action,
        "action-only, pictures": alone,
        "+see 0.3": replace(alone, see=0.3),
        "+see 0.3, shuffled pictures": replace(alone, see=0.3, shuffled=True),
    }
    found |= sentence_encoder(log)
    return {name: {"interest": value} for name, value in found.items()}
