"""The Run that docs/reference/measures.md works through by hand: three requests, two stages, eight
items, and the log with the purchases of W1 that novelty reads.
"""

import json
from pathlib import Path

import polars as pl
from karmafunnel.log import Log

CUT = {"recall": 4, "rank": 2}
PRICE = dict(zip("ABCDEFGH", range(10, 90, 10), strict=True))
# request: order of all eligible items by recall, order of its candidates by rank, relevant items
ORDERS = {
    "q1": ("ABCDEFGH", "CABD", "BC"),
    "q2": ("EFGHABCD", "FHEG", "H"),
    "q3": ("DCBAHGF", "ADCB", "DEG"),
}
# request: the shown list, as (item, probability and score by rank)
SHOWN = {
    "q1": [("A", 0.6), ("C", 0.9), ("B", 0.3)],
    "q2": [("F", 0.8), ("H", 0.5)],
    "q3": [("C", 0.2), ("A", 0.7), ("D", 0.4)],
}
# request: what production's own rank kept of the shown list
KEPT = {"q1": "C", "q2": "F", "q3": "AC"}
# p_click * p_buy * price of the rows that rank puts out
VALUE = {"q1": (6.0, 1.0), "q2": (3.0, 4.0), "q3": (1.0, 2.0)}
WOULD_RANK = {("q3", "G"): 1}  # by rank, of an item that recall has lost


def make_worked_example(folder: Path) -> Path:
    """Write the log and the Run; returns the Run's folder."""
    log = folder / "log"
    make_log(log)
    slates, requests, ledger, scored = [], [], [], []
    for number, (request, (by_recall, by_rank, relevant)) in enumerate(ORDERS.items()):
        order = {"recall": by_recall, "rank": by_rank}
        probability = dict(SHOWN[request])
        rank = {
            stage: {item: i for i, item in enumerate(items, 1)} for stage, items in order.items()
        }
        for stage, items in order.items():
            for i, item in enumerate(items[: CUT[stage]]):
                value = VALUE[request][i] if stage == "rank" else None
                slates.append((request, stage, item, i + 1, -float(i), "knn", value))
        requests.append(
            {
                "request_id": request,
                "user_id": f"u{number + 1}",
                "n_truth": len(relevant),
                "n_eligible": len(by_recall),
                "n_truth_eligible": sum(item in by_recall for item in relevant),
                "has_query": False,
                "new_user": False,
                "recall.n": len(by_recall),
                "recall.out": 4,
                "rank.n": 4,
                "rank.out": 2,
            }
        )
        for item in relevant:
            kept = {s: rank[s][item] if rank[s].get(item, 99) <= k else None for s, k in CUT.items()}
            lost = next((s for s in CUT if kept[s] is None), None)
            row = {
                "request_id": request,
                "item_id": item,
                "money": float(PRICE[item]),
                "quantity": 1,
                "eligible": item in by_recall,
                "target": "tail",
                "repeat": False,
                "price_band": "mid",
                "lost": lost if item in by_recall else "not eligible",
                "margin": rank[lost][item] - CUT[lost] if lost and item in by_recall else None,
            }
            for stage, items in order.items():
                worse = items[rank[stage][item] :] if item in items else ""
                wins = float(len(set(worse) - set(relevant))) if item in items else None
                row |= {f"{stage}.rank": kept[stage], f"{stage}.wins": wins}
            ledger.append(row)
        for item in dict.fromkeys([*probability, *relevant]):
            position = [*probability].index(item) + 1 if item in probability else None
            of_rank = rank["rank"].get(item, WOULD_RANK.get((request, item)))
            row = {
                "request_id": request,
                "item_id": item,
                "position": position,
                "clicked": item in relevant,
                "purchased": item in relevant,
                "logged_stage": "rank" if item in KEPT[request] else "recall" if position else None,
                "eligible": item in by_recall,
                "recall.score": -float(rank["recall"].get(item, 99)),
                "recall.rank": rank["recall"].get(item),
                "rank.score": probability.get(item, 0.0),
                "rank.rank": of_rank,
                "rank.p": probability.get(item),
            }
            scored.append(row)
    columns = ["request_id", "stage", "item_id", "rank", "score", "channel", "value"]
    timing = {"chunk": [0], "stage": ["rank"], "requests": [3]}
    tables = {
        "slates": pl.DataFrame(slates, schema=columns, orient="row", infer_schema_length=None),
        "requests": pl.DataFrame(requests),
        "ledger": pl.DataFrame(ledger, infer_schema_length=None),
        "scored": pl.DataFrame(scored, infer_schema_length=None),
        "timing": pl.DataFrame(timing | {"rows_in": [12], "rows_out": [6], "seconds": [0.1]}),
    }
    run = folder / "run"
    run.mkdir(parents=True)
    for name, frame in tables.items():
        frame.write_parquet(run / f"{name}.parquet")
    meta = {
        "label": "purchase",
        "seed": 0,
        "window": "W3",
        "stages": [{"name": name, "k": k} for name, k in CUT.items()],
        "log": {
            "name": "example",
            "checksum": Log.open(log).checksum,
            "path": str(log),
            "currency": "EUR",
            "items": len(PRICE),
            "stages": ["recall", "rank"],
            "world": {"items": len(PRICE)},
            "has": {"purchases": True, "exposures": True, "price": True},
        },
    }
    (run / "run.json").write_text(json.dumps(meta))
    return run


def make_log(folder: Path) -> None:
    """Eight items; in W1, A was bought three times; the last requests are those of the Run."""
    ids = ["a1", "a2", "a3", *ORDERS]
    requests = {
        "request_id": ids,
        "user_id": ["u1", "u2", "u3"] * 2,
        "source": ["search"] * 6,
        "window": ["W1"] * 3 + ["W3"] * 3,
    }
    bought = [("a1", "A"), ("a2", "A"), ("a3", "A")]
    bought += [(request, item) for request, (_, _, items) in ORDERS.items() for item in items]
    exposures = {
        "request_id": [request for request, _ in bought],
        "item_id": [item for _, item in bought],
        "purchased": [True] * len(bought),
    }
    meta = {"name": "example", "time": "order", "label": "purchase", "has": {"purchases": True}}
    Log.make(
        pl.DataFrame({"item_id": [*PRICE]}), pl.DataFrame(requests), pl.DataFrame(exposures), meta
    ).write(folder)
