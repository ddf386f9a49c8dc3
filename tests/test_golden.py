"""What a replay writes, frozen: recipes that add up nothing but whole numbers and single floats
give these very tables.

Other recipes are compared with the code of another commit on one machine:
`benchmarks/validation/golden.py`.
"""

import hashlib
from pathlib import Path

import polars as pl
import pytest
from karmafunnel.log import Log
from karmafunnel.simulator.replay.recipe import load_recipe
from karmafunnel.simulator.replay.replay import replay

# blake2b of each table as CSV, shop of the tests, seed 0
GOLDEN = {
    "popular": {
        "ledger": "c884d54c69050293",
        "requests": "8f085b2c06254ed1",
        "scored": "6bf978cf3e260ae7",
        "slates": "0b2e1a13a60dfa7e",
    },
    "own_history": {
        "ledger": "d74dd59b7531efa5",
        "requests": "c0c354e3c9379b96",
        "scored": "9771362a196838c7",
        "slates": "2237eaa048da5371",
    },
}


def digest(frame: pl.DataFrame) -> str:
    lists = [
        pl.col(name).cast(pl.List(pl.String)).list.join("|")
        for name, kind in frame.schema.items()
        if isinstance(kind, pl.List)
    ]
    return hashlib.blake2b(
        frame.with_columns(lists).write_csv().encode(), digest_size=8
    ).hexdigest()


@pytest.mark.parametrize("recipe", GOLDEN)
def test_a_replay_writes_what_it_wrote(recipe: str, shop: Log, tmp_path: Path):
    replay(load_recipe(recipe, shop), shop, tmp_path / "run")
    found = {
        p.stem: digest(pl.read_parquet(p))
        for p in sorted((tmp_path / "run").glob("*.parquet"))
        if p.stem != "timing"
    }
    assert found == GOLDEN[recipe]
