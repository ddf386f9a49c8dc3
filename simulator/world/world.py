"""`generate` a World: a log as a shop would record it, and the truth that no shop knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from ...bounds import check_bound, check_fits, check_seed
from ...checks import require
from ...errors import KarmafunnelError
from ...files import check as check_whole
from ...files import read_table, seal, write_parquet
from ...log import Catalogue, Log, write_tables
from .catalogue import Shelves, invent, plain_words, stock
from .frames import log_frames, truth_frames
from .images import render
from .market import Appeal, Market, Visit
from .shoppers import DAY, Shoppers, keep_diary, meet

DAYS = 30
START = 1_704_067_200_000  # Monday 2024-01-01 00:00 UTC


@dataclass(eq=False)
class World:
    """A log, its truth, and the marketplace itself, which can still be asked for the truth about
    any item.

    `truth` is a dict of frames, written beside the log and read by no stage: "exposures": a row
    each of the log's, in the same order: utility, examination = P(looked at), p_click = P(click |
    looked at), p_buy = P(purchase | click); "pool": what the logging policy could have shown, in
    its order, with the same truth; "ideal": the eligible items of highest utility, at most 50 a
    request; "requests": intents; "elsewhere": purchases out of the funnel; "shoppers"; "items";
    "values": what the columns of the shoppers' tastes mean.
    """

    log: Log
    truth: dict[str, pl.DataFrame]
    shelves: Shelves
    shoppers: Shoppers
    market: Market
    visits: list[Visit]
    users: np.ndarray  # (n_requests,) row in shoppers
    images: bool

    def utility(self, request: int) -> np.ndarray:
        """True utility of every item for a request (a row number), at the prices of its time:
        (n_items,) float64.

        Eligibility is not applied (see `log.asof.eligible`); what was bought later plays no part.
        """
        return self._appeal(request).utility

    def chances(self, request: int) -> tuple[np.ndarray, np.ndarray]:
        """P(click | looked at) and P(purchase | click) of every item for a request: two (n_items,)
        float64.
        """
        return self.market.chances(self._appeal(request))

    def price(self, request: int) -> np.ndarray:
        """Price of every item at the time of a request: (n_items,) float64."""
        return self.market.price(np.arange(self.shelves.n_items), int(self.log.t[request]))

    def _appeal(self, request: int) -> Appeal:
        user, intent, now = (
            int(self.users[request]),
            self.visits[request].intent,
            int(self.log.t[request]),
        )
        return self.market.appeal(
            user, intent, np.arange(self.shelves.n_items), self.price(request), now
        )

    def image(self, item: int) -> Image.Image:
        """The 32 x 32 picture of an item, by its true (not its listed) colour and pattern."""
        leaf = int(self.shelves.leaf[item])
        names = {key.lower(): value for key, value in self.shelves.names(item).items()}
        colour = names.get("colour") or names.get("color") or ""
        return render(
            leaf, int(self.shelves.department[leaf]), colour, names.get("pattern", "plain").lower()
        )

    def write(self, folder: Path | str, force: bool = False) -> None:
        """Write the log, `truth/*.parquet` and, where the World has them, `images/*.png`: all of it
        or nothing.

        Raises KarmafunnelError where the folder is something else than a log, or (without `force`)
        another World or log.
        """
        write_tables(folder, self.log.tables, self.log.meta, force=force, also=self._write_more)

    def _write_more(self, folder: Path) -> None:
        write_truth(folder, self.truth)
        if self.images:
            (folder / "images").mkdir()
            for item, path in enumerate(self.log.items["image"]):
                self.image(item).save(folder / path)


def write_truth(folder: Path, truth: dict[str, pl.DataFrame]) -> None:
    """Write frames to `truth/*.parquet` of a log's folder."""
    (folder / "truth").mkdir()
    for name, frame in truth.items():
        write_parquet(folder / "truth" / f"{name}.parquet", frame, compression="zstd")
    seal(folder / "truth")


def read_truth(folder: Path | str) -> dict[str, pl.DataFrame]:
    """The truth kept beside a written World; raises KarmafunnelError where there is none, or where
    a file is not as it was written.
    """
    paths = sorted((Path(folder) / "truth").glob("*.parquet"))
    if not paths:
        raise KarmafunnelError(
            folder, needs="truth/*.parquet of a simulated marketplace", found="none"
        )
    check_whole(Path(folder) / "truth")
    return {path.stem: read_table(path) for path in paths}


def generate(
    items: int = 2000,
    users: int = 300,
    requests: int = 2000,
    seed: int = 0,
    semantic: float = 0.5,
    catalogue: Catalogue | None = None,
    images: bool = False,
    exploration: float = 0.1,
) -> World:
    """A simulated marketplace: 30 days of searching, browsing, clicking and buying, with the truth
    beside the log.

    `semantic` in 0..1: how much of taste is liking of attributes, which text can tell, rather than
    of single items, latent crowds and habits, which only behaviour can tell. `catalogue`: shop
    among at most `items` of a real one, not an invented one. `images`: render a picture of every
    item. `exploration` in 0..1: probability that a slot shows a random item of the engine's pool.
    `users` may ask; the least active of them may not. Invented catalogue, shoppers and the times of
    their requests depend on sizes and seed alone. Same arguments, same bytes. Raises
    KarmafunnelError on impossible arguments, and for a catalogue that fails a check whose failure
    would change a figure.
    """
    check_arguments(items, users, requests, seed, semantic, exploration)
    if catalogue is not None:
        require(catalogue)
    shelf_rng, people_rng, diary_rng, market_rng = (
        np.random.default_rng([seed, stream]) for stream in range(4)
    )
    shelves = invent(items, shelf_rng) if catalogue is None else stock(catalogue, items, shelf_rng)
    shoppers = meet(users, shelves, DAYS * DAY, people_rng)
    diary = keep_diary(requests, shoppers, START, DAYS, diary_rng)
    market = Market(
        shelves, shoppers, float(semantic), float(exploration), START, DAYS * DAY, market_rng
    )
    titles = None
    # the nouns of a real catalogue are few: half of the searches say words of a title
    if catalogue is not None:
        market.named, titles = 0.5, [plain_words(title) for title in shelves.items["title"]]
    visits = list(market.run(diary, titles))

    arguments = {
        "items": items,
        "users": users,
        "requests": requests,
        "seed": seed,
        "semantic": semantic,
        "images": images,
        "exploration": exploration,
    }
    log = Log.make(
        *log_frames(visits, diary, shoppers, shelves, market, images),
        describe(arguments, catalogue, shelves),
    )
    truth = truth_frames(visits, diary, shoppers, shelves, market)
    return World(log, truth, shelves, shoppers, market, visits, diary.user, images)


def check_arguments(
    items: int, users: int, requests: int, seed: int, semantic: float, exploration: float
) -> None:
    """Raises KarmafunnelError naming an argument out of bounds."""
    for name, value in {"items": items, "users": users, "requests": requests}.items():
        check_bound("World", f"world_{name}", **{name: value})
    for name, share in {"semantic": semantic, "exploration": exploration}.items():
        check_bound("World", name, **{name: share})
    check_seed("World", seed)
    sizes = {
        f"{items:,} items": 6e3 * items,
        f"{users:,} users": 1e4 * users,
        f"{requests:,} requests": 2e4 * requests,
    }
    check_fits("World", sizes)


def describe(
    arguments: dict[str, Any], catalogue: Catalogue | None, shelves: Shelves
) -> dict[str, Any]:
    """`log.json` of a World."""
    call = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    has = [
        "text",
        "query",
        "price",
        "exposures",
        "clicks",
        "purchases",
        "users",
        "propensity",
        "filters",
    ]
    meta: dict[str, Any] = {
        "name": "world",
        "currency": "EUR",
        "licence": "simulated, free to use",
        "source": f"karmafunnel.simulator.world.generate({call})",
        "time": "clock",
        "scenario": ["search", "browse"],
        "label": "click",
        "catalogue": "published",
        "has": {name: True for name in has} | {"images": bool(arguments["images"])},
        "lacks": [
            "real people: intents, clicks and purchases are simulated",
            "real products: the catalogue is invented",
        ],
        "notes": shelves.notes,
        "world": arguments,
    }
    if catalogue is not None:
        name = str(catalogue.meta.get("name"))
        meta |= {
            "name": f"world-{name}",
            "currency": catalogue.meta.get("currency"),
            "licence": f"behaviour: simulated, free to use; items: {catalogue.meta.get('licence')}",
            "source": f"karmafunnel.simulator.world.generate({call}, catalogue={name})",
            "lacks": meta["lacks"][:1],
        }
    return meta
