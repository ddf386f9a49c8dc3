"""What the attacks attack: small logs, recipes, and one finished result of every command, each
made by the commands themselves."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ...log import Log
from .commands import Answer, Commands

WORDS = (
    *("red", "blue", "green", "wool", "cotton", "lamp", "chair", "table"),
    *("mug", "cup", "shoe", "boot", "hat", "coat", "scarf"),
)
HAS = ("text", "query", "price", "exposures", "clicks", "purchases", "users")
META = {
    "name": "small",
    "currency": "EUR",
    "label": "click",
    "catalogue": "published",
    "has": dict.fromkeys(HAS, True),
}
Frames = dict[str, pl.DataFrame]

# One recipe with every kind of fitted file, one that fits in no time, one with rows.
EVERY = """
from karmafunnel.models.embedders import Cooccurrence, TfidfSVD
from karmafunnel.models.karma import KARMA, Qwen
from karmafunnel.models.sasrec import SASRec
from karmafunnel.stages.features import BM25, RequestContext, Own, Popularity, Similarity, Upstream
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.rank import DINRank
from karmafunnel.stages.recall import HNSW, BM25Recall, ItemKNN, Join, Popular, Repeat, VectorRecall
from karmafunnel.stages.rerank import MMR

shape = {"dim": 32, "layers": 1, "heads": 2, "kv_heads": 1, "mlp": 64, "vocab": 300, "context": 32}
tiny = Qwen(**shape, tokens=1000, batch=4)
embedders = {
    "sasrec": SASRec(epochs=1), "tfidf": TfidfSVD(dim=16), "cooccurrence": Cooccurrence(),
    "karma": KARMA(backbone=tiny, dim=16, epochs=1, length=6, batch=32),
}
near = [Similarity("karma"), Similarity("cooccurrence")]
vectors = [VectorRecall(name, k=20) for name in ("tfidf", "karma")]
channels = [VectorRecall("sasrec", k=20, index=HNSW(m=8)), *vectors, ItemKNN(k=20)]
channels += [BM25Recall(k=20), Repeat(k=10), Popular(k=10, days=3)]
funnel = (
    Join(channels, k=45)
    >> LightGBMPreRank(k=30, trees=15, features=[Upstream(), BM25(), Popularity(), Own(), *near])
    >> DINRank(k=20, epochs=1, features=[Upstream(), RequestContext()])
    >> MMR("tfidf", k=10)
)
"""
SHOP = """
from karmafunnel.simulator.world.marketplace import Marketplace

marketplace = Marketplace()
"""
PLAIN = """
from karmafunnel.stages.features import Popularity, Upstream
from karmafunnel.stages.prerank import LightGBMPreRank
from karmafunnel.stages.recall import BM25Recall, Join, Popular

ranker = LightGBMPreRank(k=15, trees=10, features=[Upstream(), Popularity()], name="rank")
funnel = Join([Popular(k=20), BM25Recall(k=20)], k=30) >> ranker
fallbacks = {"popular": Popular(k=30)}
"""
ROWS = """
from karmafunnel.models.embedders import Cooccurrence, RandomVectors
from karmafunnel.stages.features import Popularity, Similarity
from karmafunnel.stages.rank import LightGBMRank
from karmafunnel.stages.recall import Popular

funnel = Popular(k=30) >> LightGBMRank(k=15, trees=10, features=[Popularity(), Similarity("near")])
rows = {"random": {"near": RandomVectors(dim=8)}, "together": {"near": Cooccurrence()}}
against, seeds = "random", (0,)
"""
SERVICES = """name = "small"
deadline_ms = 60

[[stage]]
name = "recall"
servers = 2
items = 60
k = 30
batch = 4
wait_ms = 1.0
queue = 50
patience_ms = 20
deadline_ms = 30
retries = 1
fail = "open"
fallback = "popular"
cost_per_hour = 0.4
time = {kind = "lognormal", base_ms = 1.2, request_ms = 0.3, item_us = 0.5, cv = 0.2}
cold = {requests = 20, factor = 2.0}
slow = {probability = 0.01, factor = 5.0}
crash = {every_s = 20.0, repair_s = 1.0}
cache = {hit = 0.1}

[[stage]]
name = "rank"
servers = 3
k = 15
fail = "open"
fallback = "skip"
time = {kind = "exponential", base_ms = 2.0, item_us = 20.0}
"""


def frames(
    n_items: int = 60, n_users: int = 25, n_requests: int = 300, shown: int = 8, seed: int = 0
) -> Frames:
    """Tables `items`, `requests`, `exposures` of a shop in which users have tastes: enough to
    learn from, little to wait for."""
    rng = np.random.default_rng(seed)
    titles = [" ".join(rng.choice(WORDS, 3, replace=False)) for _ in range(n_items)]
    prices = np.round(rng.lognormal(2, 1, n_items), 2)
    colour = [f"colour={i % 3}" for i in range(n_items)]
    items = pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(n_items)],
            "title": titles,
            "brand": [f"b{i % 5}" for i in range(n_items)],
            "category": [[["home", "wear"][i % 2]] for i in range(n_items)],
            "price": prices,
            "attributes": [[word] for word in colour],
        }
    )
    taste, trait = rng.normal(size=(n_users, 4)), rng.normal(size=(n_items, 4))
    user = rng.integers(n_users, size=n_requests)
    liking = (
        taste[user] @ trait.T + rng.normal(size=n_items) + rng.gumbel(size=(n_requests, n_items))
    )
    slate = rng.permuted(np.argsort(-liking, axis=1)[:, :shown], axis=1)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    requests = pl.DataFrame(
        {
            "request_id": [f"r{r}" for r in range(n_requests)],
            "user_id": [f"u{u}" for u in user],
            "ts": [start + timedelta(seconds=900 * r) for r in range(n_requests)],
            "query": [titles[row[0]].split()[0] for row in slate],
            "session_id": [f"s{r // 3}" for r in range(n_requests)],
            "source": ["search"] * n_requests,
        }
    )
    chance = (
        0.6
        / (1 + np.exp(1 - np.einsum("rf,rsf->rs", taste[user], trait[slate])))
        / (1 + 0.2 * np.arange(shown))
    )
    click = (rng.random(slate.shape) < chance).ravel()
    buy = click & (rng.random(click.size) < 0.4)
    item = slate.ravel()
    exposures = pl.DataFrame(
        {
            "request_id": np.repeat(requests["request_id"].to_numpy(), shown),
            "item_id": [f"i{i}" for i in item],
            "position": np.tile(np.arange(1, shown + 1, dtype=np.int32), n_requests),
            "clicked": click,
            "purchased": buy,
            "price_shown": prices[item],
        }
    )
    bought = pl.col("purchased")
    exposures = exposures.with_columns(
        pl.when(bought).then("price_shown").alias("price_paid"),
        pl.when(bought).then(pl.lit(1, pl.Int32)).alias("quantity"),
    )
    return {"items": items, "requests": requests, "exposures": exposures}


def retail(seed: int, n: int = 400) -> str:
    """A CSV file as the publisher of Online Retail writes them."""
    rng = np.random.default_rng(seed)
    head = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
    lines = [head]
    for i in range(n):
        item, when = (
            int(rng.integers(40)),
            datetime(2011, 1, 1, 9) + timedelta(minutes=30 * (i // 3)),
        )
        lines.append(
            f"{536365 + i // 3},{20000 + item},{WORDS[item % 15].upper()} "
            f"{WORDS[item % 7].upper()},{1 + i % 3},"
            f"{when:%Y-%m-%d %H:%M:%S},{1 + item / 4:.2f},{17850.0 + (i // 3) % 20},United Kingdom"
        )
    return "\n".join(lines) + "\n"


def stacked(count: int) -> dict[str, Any]:
    """JSON lists in each other."""
    value: Any = 0
    for _ in range(count):
        value = [value]
    return {"deep": value}


# -- one place to work in ------------------------------------------------------------------------


@dataclass(frozen=True)
class Shop:
    """A folder `made` with inputs and results, and one `work` folder that every try gets anew, at
    the same path."""

    made: Path
    work: Path
    commands: Commands

    @property
    def told(self) -> Path:
        return self.made.parent / "told"

    def env(self) -> dict[str, str]:
        return {
            "KARMAFUNNEL_CACHE": str(self.work / "cache"),
            "TMPDIR": str(self.work / "tmp"),
            "HOME": str(self.work / "home"),
        }

    def fresh(self, copies: Mapping[str, str] | Iterable[str] = ()) -> Path:
        """An empty work folder with copies of things that were made: name there -> name in `made`;
        returns it."""
        shutil.rmtree(self.work.parents[1], ignore_errors=True)
        for name in ("tmp", "home"):
            (self.work / name).mkdir(parents=True)
        pairs = copies.items() if isinstance(copies, Mapping) else [(name, name) for name in copies]
        for name, source in pairs:
            copy(self.made / source, self.work / name)
        return self.work

    def run(self, *argv: object, **limits: Any) -> Answer:
        return self.commands.run(
            [str(word) for word in argv], self.work, self.told, self.env(), **limits
        )

    def must(self, *argv: object) -> Answer:
        """A command that has to succeed."""
        answer = self.run(*argv, seconds=300)
        if answer.code != 0:
            raise RuntimeError(
                f"karmafunnel {' '.join(map(str, argv))}: {answer.code} {answer.stderr[-2000:]}"
            )
        return answer

    def keep(self, *names: str) -> None:
        """Move results of the work folder to what is made."""
        for name in names:
            copy(self.work / name, self.made / name)


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


INPUTS = (
    "log",
    "small",
    "every.py",
    "plain.py",
    "rows.py",
    "shop.py",
    "raw",
    "raw2",
    "services.toml",
    "events.csv",
    "lists.csv",
)


def write_tables_of(log: Log, folder: Path) -> None:
    """What a user may have of a log: a table of events, and lists that some stages put out."""
    rows = log.exposures.join(log.requests, on="request_id", maintain_order="left")
    events = rows.select("user_id", "item_id", "ts", pl.col("price_shown").alias("price"))
    (folder / "events.csv").write_text(events.write_csv(), encoding="utf-8")
    lists = rows.select("request_id", "item_id", pl.col("position").alias("rank"))
    stages = [lists.with_columns(stage=pl.lit(stage)) for stage in ("recall", "rank")]
    stages[1] = stages[1].filter(pl.col("rank") <= 5)
    (folder / "lists.csv").write_text(pl.concat(stages).write_csv(), encoding="utf-8")


def make(shop: Shop) -> None:
    """Fill `shop.made`: inputs, then a result of every command; whole or not at all."""
    marker = shop.made / "whole"
    if marker.exists():
        return
    shutil.rmtree(shop.made, ignore_errors=True)
    shop.made.mkdir(parents=True)
    for name, n in (("log", 2700), ("small", 300)):
        Log.make(**frames(n_requests=n, seed=3), meta=META | {"name": name}).write(shop.made / name)
    for name, text in (("every", EVERY), ("plain", PLAIN), ("rows", ROWS), ("shop", SHOP)):
        (shop.made / f"{name}.py").write_text(text, encoding="utf-8")
    for name, seed in (("raw", 0), ("raw2", 1)):
        (shop.made / name).mkdir()
        (shop.made / name / "online_retail.csv").write_text(retail(seed), encoding="utf-8")
    (shop.made / "services.toml").write_text(SERVICES, encoding="utf-8")
    write_tables_of(Log.open(shop.made / "small"), shop.made)
    shop.fresh(INPUTS)
    shop.must("replay", "every.py", "log", "--out", "run")
    shop.must(
        "replay",
        "plain.py",
        "small",
        "--out",
        "plain",
        "--path",
        "recall=popular",
        "--path",
        "rank=skip",
        "--path",
        "recall=popular,rank=skip",
    )
    shop.must("replay", "rows.py", "small", "--out", "other")
    shop.must("table", "rows.py", "small", "--out", "table")
    shop.must("fit-embedder", "every.py", "log", "--name", "karma", "--out", "embedder")
    shop.must("queue", "services.toml", "--rate", 200, "--requests", 2000, "--out", "simulation")
    shop.keep("run", "plain", "other", "table", "embedder", "simulation", "cache")
    marker.touch()


# -- what a result says --------------------------------------------------------------------------

VOLATILE = {
    "cost",
    "seconds",
    "command",
    "commit",
    "training seconds",
    "embedding µs a request",
    "path",
    "µs a request",
}


def tell(path: Path) -> str:
    """A digest of what a file says, timing and the command line apart; of its bytes where it is
    neither a table nor JSON."""
    data = path.read_bytes()
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(io.BytesIO(data))
            table = table.drop_columns(
                [name for name in table.column_names if name == "spent" or "seconds" in name]
            ).replace_schema_metadata()
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table.combine_chunks())
            data = sink.getvalue().to_pybytes()
        elif (
            path.stem == "table" and path.suffix != ".json"
        ):  # with what each row costs; other forms of it are rendered of the same
            told = data.decode().splitlines() if path.suffix == ".csv" else []
            data = "\n".join(line for line in told if not volatile(line, "ms a request")).encode()
        elif path.name == "digests.json":  # those of files that are asked themselves
            data = json.dumps(sorted(json.loads(data))).encode()
        elif path.suffix == ".json":
            data = json.dumps(steady(json.loads(data)), sort_keys=True).encode()
    except (ValueError, pa.ArrowException, OSError):
        data = b"unreadable" + data
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def volatile(text: str, *more: str) -> bool:
    """Whether a text has one of the words by which equal runs differ."""
    return any(word in text for word in (*VOLATILE, *more))


def steady(value: Any) -> Any:
    """JSON without the parts by which equal runs differ."""
    if isinstance(value, dict):
        return {key: steady(x) for key, x in value.items() if not volatile(key)}
    if isinstance(value, str):
        return re.sub(r"\d+\.\d+ s\b", "", value)
    if isinstance(value, list):
        # the command of a table, and how much its rows shared: an earlier start had done some
        apart = ("`karmafunnel ", "rows whose funnels begin alike share stages")
        return [steady(x) for x in value if not str(x).startswith(apart)]
    return value


def files(place: Path) -> dict[str, Path]:
    """Every file of a folder (or the one file) by its name in it, hidden ones too."""
    if place.is_dir():
        found = {}
        for path in sorted(place.rglob("*")):
            if not path.is_dir():
                found[str(path.relative_to(place))] = path
        return found
    return {"": place} if place.exists() or place.is_symlink() else {}


def raw(place: Path) -> dict[str, str]:
    """A digest of the bytes of every file."""
    found = {}
    for name, path in files(place).items():
        found[name] = hashlib.blake2b(path.read_bytes(), digest_size=12).hexdigest()
    return found


def said(place: Path) -> dict[str, str]:
    """A digest of what every file says."""
    return {name: tell(path) for name, path in files(place).items()}


# -- tries ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One try: `group` is its line of the count table, `what` says exactly what is done, `do` does
    it: outcome and detail."""

    group: str
    what: str
    do: Callable[[Shop], tuple[str, str]]
