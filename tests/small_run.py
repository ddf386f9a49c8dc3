"""A small Run and the log that it could have come from, written without replaying anything."""

import json
from pathlib import Path

import numpy as np
import polars as pl
from karmafunnel.log import Log

KEEPS = {"recall": 20, "rank": 5}
ITEMS, REQUESTS, USERS = 60, 48, 12


def make_run(
    folder: Path,
    seed: int = 0,
    priced: bool = True,
    shown: bool = True,
    skill: float = 1.5,
    log: Path | None = None,
) -> Path:
    """Two stages over 60 items; 1 or 2 relevant items a request, scored higher by `skill`; item i0
    is never eligible.
    """
    rng, by_skill = np.random.default_rng(7), np.random.default_rng(seed)
    slates, requests, ledger, scored = [], [], [], []
    for r in range(REQUESTS):
        request = f"r{r:02d}"
        truth = [int(t) for t in rng.choice(ITEMS, 1 + r % 2, replace=False)] if r % 8 else []
        lists = rng.choice(ITEMS, 8, replace=False)
        score = {
            s: by_skill.normal(size=ITEMS) + skill * np.isin(np.arange(ITEMS), truth) for s in KEEPS
        }
        alive, ranks, wins = np.arange(1, ITEMS), {}, {}
        for stage, keep in KEEPS.items():
            order = alive[np.argsort(-score[stage][alive])]
            ranks[stage] = {int(item): i + 1 for i, item in enumerate(order)}
            others = np.setdiff1d(alive, truth)
            wins[stage] = {
                t: float((score[stage][others] < score[stage][t]).sum())
                for t in truth
                if t in ranks[stage]
            }
            slates += [
                (request, stage, f"i{item}", i + 1, score[stage][item], "bm25+knn")
                for i, item in enumerate(order[:keep])
            ]
            alive = order[:keep]
        for t in truth:
            kept = {
                s: ranks[s].get(t) if (ranks[s].get(t) or 99) <= k else None
                for s, k in KEEPS.items()
            }
            lost = next((s for s in KEEPS if kept[s] is None), None)
            margin = ranks[lost].get(t, 99) - KEEPS[lost] if lost else None
            row = {
                "request_id": request,
                "item_id": f"i{t}",
                "money": 1.0 + t if priced else None,
                "quantity": 1,
                "eligible": t > 0,
            }
            row |= {
                "target": ["head", "tail", "cold"][t % 3],
                "repeat": t % 2 == 0,
                "price_band": ["low", "mid", "high"][t % 3] if priced else None,
            }
            row |= {
                "lost": "not eligible" if t == 0 else lost,
                "margin": margin if t else None,
                "margin_score": None,
            }
            for s in KEEPS:
                row |= {
                    f"{s}.rank": kept[s],
                    f"{s}.score": score[s][t],
                    f"{s}.wins": wins[s].get(t),
                }
            ledger.append(row)
        logged = list(dict.fromkeys([*lists.tolist(), *truth])) if shown else truth
        for i, item in enumerate(logged):
            row = {
                "request_id": request,
                "item_id": f"i{item}",
                "position": i + 1 if shown else None,
                "clicked": item in truth,
            }
            row |= {
                "purchased": False,
                "money": 1.0 + item if priced else None,
                "eligible": item > 0,
            }
            row |= {
                f"{s}.{c}": v
                for s in KEEPS
                for c, v in (("score", score[s][item]), ("rank", ranks[s].get(item, 99)))
            }
            scored.append(
                row | ({"rank.p": float(1 / (1 + np.exp(-score["rank"][item])))} if shown else {})
            )
        requests.append(
            {
                "request_id": request,
                "user_id": f"u{r % USERS}",
                "ts": None,
                "window": "W3",
                "n_truth": len(truth),
                "n_eligible": ITEMS - 1,
                "n_truth_eligible": sum(t > 0 for t in truth),
                "n_shown": len(logged) if shown else 0,
                "has_query": r % 3 > 0,
                "new_user": r < 6,
                "recall.n": ITEMS - 1,
                "recall.out": 20,
                "recall.index_recall": 1.0,
                "rank.n": 20,
                "rank.out": 5,
            }
        )
    timing = [
        (i, s, 24, 24 * n, 24 * k, 0.01 * n)
        for i in range(2)
        for s, n, k in (("recall", 59, 20), ("rank", 20, 5))
    ]
    folder.mkdir(parents=True)
    tables = {
        "slates": pl.DataFrame(
            slates,
            schema=["request_id", "stage", "item_id", "rank", "score", "channel"],
            orient="row",
        ),
        "requests": pl.DataFrame(requests),
        "ledger": pl.DataFrame(ledger, infer_schema_length=None),
        "scored": pl.DataFrame(scored, infer_schema_length=None),
        "timing": pl.DataFrame(
            timing,
            schema=["chunk", "stage", "requests", "rows_in", "rows_out", "seconds"],
            orient="row",
        ),
    }
    for name, frame in tables.items():
        frame.write_parquet(folder / f"{name}.parquet")
    meta = {
        "recipe": 'label = None  # <b> & "quotes"',
        "recipe_name": "small",
        "funnel": "Popular(k=20) >> Ranker(k=5)",
        "label": "click",
        "seed": seed,
        "embedders": {},
        "commit": "abc1234",
        "versions": {"karmafunnel": "0.1.0"},
        "window": "W3",
        "device": "cpu",
        "limit": None,
        "command": "replay small",
        "stages": [{"name": s, "kind": s.title(), "k": k} for s, k in KEEPS.items()],
        "log": {
            "name": "corner shop",
            "checksum": Log.open(log).checksum if log else "c0ffee",
            "currency": "EUR",
            "catalogue": "seen",
            "items": ITEMS,
            "path": str(log) if log else None,
            "has": {"price": priced, "exposures": shown, "query": True, "text": bool(log)},
        },
    }
    (folder / "run.json").write_text(json.dumps(meta))
    return folder


def make_log(folder: Path) -> Path:
    """A log whose last requests are those of the Run; every user clicked i7 long before and i9
    after.
    """
    earlier, later = [f"a{u:02d}" for u in range(USERS)], [f"z{u:02d}" for u in range(USERS)]
    ids = [*earlier, *(f"r{r:02d}" for r in range(REQUESTS)), *later]
    users = [
        *(f"u{u}" for u in range(USERS)),
        *(f"u{r % USERS}" for r in range(REQUESTS)),
        *(f"u{u}" for u in range(USERS)),
    ]
    ts = pl.Series(range(len(ids))) * 60_000 + 1_700_000_000_000
    requests = {"request_id": ids, "user_id": users, "ts": ts, "source": ["search"] * len(ids)}
    requests = pl.DataFrame(requests | {"query": [f"query {i} <&>" for i in ids]}).with_columns(
        pl.col("ts").cast(pl.Datetime("ms", "UTC"))
    )
    items = pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(ITEMS)],
            "title": [f"</script> thing {i}" for i in range(ITEMS)],
        }
    )
    clicks = {
        "request_id": [*earlier, *later],
        "item_id": ["i7"] * USERS + ["i9"] * USERS,
        "clicked": [True] * (2 * USERS),
    }
    has = dict.fromkeys(("clicks", "query", "text", "users"), True)
    Log.make(
        items, requests, pl.DataFrame(clicks), {"name": "corner shop", "licence": "CC0", "has": has}
    ).write(folder)
    return folder
