"""MovieLens: the layouts of its editions as one; see `movielens.toml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from ...errors import KarmafunnelError
from ...files import write_parquet
from ._raw import find, need, read_csv, reading, streamed
from ._source import describe

WHERE = describe("movielens").home
# The ratings of each layout: separator, names in the file by role, header where it has none.
HEADLESS = {"user": "user", "item": "item", "rating": "rating", "time": "time"}
LAYOUTS: dict[str, tuple[str, dict[str, str], list[str] | None]] = {
    "ratings.csv": (
        ",",
        {"user": "userId", "item": "movieId", "rating": "rating", "time": "timestamp"},
        None,
    ),
    "ratings.dat": (":", HEADLESS, ["user", "_1", "item", "_2", "rating", "_3", "time"]),
    "u.data": ("\t", HEADLESS, list(HEADLESS)),
    "ml-100k.inter": (
        "\t",
        {
            "user": "user_id:token",
            "item": "item_id:token",
            "rating": "rating:float",
            "time": "timestamp:float",
        },
        None,
    ),
}
FILMS = {
    "ratings.csv": "movies.csv",
    "ratings.dat": "movies.dat",
    "u.data": "u.item",
    "ml-100k.inter": "ml-100k.item",
}
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)  # fmt: skip


def tables(root: Path | str, work: Path) -> dict[Path, Path]:
    """The ratings and the films of the edition in `root`, with the columns of the map."""
    path = find(root, list(LAYOUTS), WHERE)
    separator, columns, header = LAYOUTS[path.name]
    to = work / "ratings.parquet"
    streamed(path, columns, to, separator=separator, header=header)
    films = find(root, [FILMS[path.name]], WHERE)
    return {to: path, write_parquet(work / "films.parquet", films_of(films)): films}


def films_of(path: Path) -> pl.DataFrame:
    """item, title and category (its genres) of every film."""
    if path.name == "movies.csv":
        frame = read_csv(path, ("movieId", "title", "genres"))
        genres = pl.col("genres").str.split("|")
        return frame.select(pl.col("movieId").alias("item"), "title", genres.alias("category"))
    if path.name == "ml-100k.item":
        columns = ("item_id:token", "movie_title:token_seq", "class:token_seq")
        frame = read_csv(path, columns, "\t", None)
        genres = pl.col(columns[2]).str.split(" ")
        return frame.select(
            pl.col(columns[0]).alias("item"), pl.col(columns[1]).alias("title"),
            genres.alias("category"),
        )  # fmt: skip
    separator = "::" if path.name == "movies.dat" else "|"
    rows = []
    with reading(path):
        lines = path.read_bytes().decode("latin-1").splitlines()
    for number, line in enumerate(filter(str.strip, lines), 1):
        fields = line.split(separator)
        if len(fields) != (3 if separator == "::" else 5 + len(GENRES)):
            raise KarmafunnelError(f"{path}: row {number}", needs="a film", found=repr(line[:80]))
        if separator == "::":
            rows.append((fields[0], fields[1], fields[2].split("|")))
        else:
            flags = zip(GENRES, fields[5:], strict=True)
            rows.append((fields[0], fields[1], [genre for genre, flag in flags if flag == "1"]))
    schema: dict[str, Any] = {"item": pl.String, "title": pl.String, "category": pl.List(pl.String)}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    need(frame, list(schema), path)
    return frame
