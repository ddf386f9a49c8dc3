"""Tables of somebody's own become logs: what was taken for what, bad input, the same bytes."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.simulator.front import Log as FrontLog
from karmafunnel.simulator.importing.assembling import import_tables
from karmafunnel.simulator.importing.column_map import ColumnMap, Times
from karmafunnel.simulator.importing.guessing import NAMES, by_name, guess_time, numbers, plain
from karmafunnel.simulator.importing.looking import look

START = 1_600_000_000


def rows_of(n: int = 60) -> list[tuple[str, str, int]]:
    return [(f"{i % 7:03d}", f"{(i * i) % 11:04d}", START + 600 * i) for i in range(n)]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def plain_csv(n: int = 60) -> str:
    return "user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows_of(n))


def pairs(log: Log) -> list[tuple[str, str, int]]:
    """User, item and time in seconds of every interaction, in time order."""
    frame = log.requests.join(log.exposures, on="request_id", maintain_order="left")
    seconds = frame["ts"].dt.epoch("s").to_list()
    return list(zip(frame["user_id"], frame["item_id"], seconds, strict=True))


def imported(tmp_path: Path, *files: Path, **options) -> Log:
    import_tables(files, tmp_path / "log", **options)
    return Log.open(tmp_path / "log")


# -- formats ---------------------------------------------------------------------------------------


def as_parquet(path: Path) -> Path:
    frame = pl.DataFrame(rows_of(), schema=["user", "item", "time"], orient="row")
    frame.write_parquet(path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def as_arrow(path: Path) -> Path:
    """As a folder of Hugging Face `datasets` holds it."""
    table = pl.DataFrame(rows_of(), schema=["user", "item", "time"], orient="row").to_arrow()
    folder = path.parent / "dataset"
    folder.mkdir()
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table)
    (folder / "dataset_info.json.txt.ignored").write_text("{}")
    return folder


FORMATS = {
    "csv": lambda p: write(p, plain_csv()),
    "semicolons": lambda p: write(p, plain_csv().replace(",", ";")),
    "tabs": lambda p: write(p.with_suffix(".tsv"), plain_csv().replace(",", "\t")),
    "windows": lambda p: write(p, plain_csv().replace("\n", "\r\n")),
    "mark": lambda p: write(p, plain_csv(), "utf-8-sig"),
    "gzip": lambda p: (
        Path(f"{p}.gz").write_bytes(gzip.compress(plain_csv().encode())),
        Path(f"{p}.gz"),
    )[1],
    "zstd": lambda p: (
        Path(f"{p}.zst").write_bytes(pa.compress(plain_csv().encode(), "zstd", asbytes=True)),
        Path(f"{p}.zst"),
    )[1],
    "recbole": lambda p: write(
        p.with_suffix(".inter"),
        plain_csv()
        .replace(",", "\t")
        .replace("user\titem\ttime", "user_id:token\titem_id:token\ttimestamp:float"),
    ),
    "json lines": lambda p: write(
        p.with_suffix(".jsonl"),
        "".join(
            json.dumps(dict(zip(("user", "item", "time"), row, strict=True))) + "\n"
            for row in rows_of()
        ),
    ),
    "parquet": as_parquet,
    "hugging face": as_arrow,
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_log(kind, tmp_path):
    log = imported(tmp_path, FORMATS[kind](tmp_path / "rows.csv"))
    assert pairs(log) == rows_of()
    assert log.has("clicks") and log.has("users") and not log.has("purchases")
    assert sorted(log.item_ids) == sorted({item for _, item, _ in rows_of()})


def test_files_of_a_folder_are_read_one_after_the_other(tmp_path):
    (tmp_path / "in").mkdir()
    head, *lines = plain_csv().splitlines(keepends=True)
    write(tmp_path / "in" / "b.csv", head + "".join(lines[30:]))
    write(tmp_path / "in" / "a.csv", head + "".join(lines[:30]))
    assert pairs(imported(tmp_path, tmp_path / "in")) == rows_of()


@pytest.mark.parametrize(
    ("write_time", "unit"),
    [
        (lambda t: str(t), "s"), (lambda t: str(t * 1000), "ms"), (lambda t: str(t * 10**6), "us"), (lambda t: str(t * 10**9), "ns"),
        (lambda t: f"{t}.0", "s"), (lambda t: f"{t:.3e}" if t % 10**6 == 0 else str(t), "s"),
    ],
)  # fmt: skip
def test_units_of_time_are_told_by_their_size(write_time, unit, tmp_path):
    path = write(
        tmp_path / "rows.csv",
        "user,item,time\n" + "".join(f"{u},{i},{write_time(t)}\n" for u, i, t in rows_of()),
    )
    found = look([path])
    assert found.map.time.unit == unit
    assert pairs(imported(tmp_path, path)) == rows_of()


@pytest.mark.parametrize(
    "form",
    [
        "%Y-%m-%d %H:%M:%S",
        "%Y-%m-%dT%H:%M:%SZ",
        "%Y-%m-%dT%H:%M:%S+00:00",
        "%d/%m/%Y %H:%M:%S",
        "%d.%m.%Y %H:%M:%S",
        "%Y%m%d%H%M%S",
    ],
)
def test_written_times_are_read(form, tmp_path):
    lines = [
        f"{u},{i},{datetime.fromtimestamp(t, UTC).strftime(form)}\n" for u, i, t in rows_of(2000)
    ]
    log = imported(
        tmp_path, write(tmp_path / "rows.csv", "user,item,when_it_was\n" + "".join(lines))
    )
    assert pairs(log) == rows_of(2000)


def test_local_times_are_moved_to_utc(tmp_path):
    text = "user,item,time\n" + "".join(
        f"{u},{i},{datetime.fromtimestamp(t, UTC):%Y-%m-%d %H:%M:%S}\n" for u, i, t in rows_of()
    )
    log = imported(tmp_path, write(tmp_path / "rows.csv", text), changes={"zone": "Europe/Paris"})
    assert [t for _, _, t in pairs(log)] == [t - 7200 for _, _, t in rows_of()]  # summer in Paris
    with pytest.raises(KarmafunnelError) as raised:
        import_tables(
            [tmp_path / "rows.csv"], tmp_path / "other", changes={"zone": "Europe/Nowhere"}
        )
    assert raised.value.what == "time.zone" and not (tmp_path / "other").exists()


def test_day_and_month_that_could_be_either_are_said():
    found = guess_time(pl.Series(["01/02/2020 10:00:00", "03/04/2020 10:00:00"]))
    assert found is not None and "the other way round" in found[1]
    sure = guess_time(pl.Series(["13/02/2020 10:00:00", "03/04/2020 10:00:00"]))
    assert sure is not None and sure[0].format.startswith("%d/%m") and "other way" not in sure[1]


# -- what rows mean --------------------------------------------------------------------------------


def test_names_are_compared_without_case_accents_and_signs():
    assert (
        plain("Prix unitaire") == "prixunitaire"
        and plain("Quantité") == "quantite"
        and plain("user_ID") == "userid"
    )


@pytest.mark.parametrize(
    ("header", "roles"),
    [
        ("N° client;Réf article;P.U. HT;N° commande;Date;Qté", "user item price basket time quantity"),
        ("№ client;CodeArticle;P.U. TTC;Nº ticket;Date;Désignation", "user item price basket time title"),
        ("Customer No.;Item #;Unit price (EUR);Order #;Date", "user item price basket time"),
        ("Kunden-Nr;Artikel-Nr.;Stückpreis;Auftragsnr;Datum;Menge", "user item price basket time quantity"),
        ("CustomerRef;product_code;sales_value;transaction no;date", "user item price basket time"),
        ("user id;sku;query_id;event_id;day", "user item request - time"),  # no query, no event
        ("visitor;sku;n_items;ordinal no;user age;ts", "user item - - - time"),
    ],
)  # fmt: skip
def test_names_that_say_number_code_or_tax_are_known(header, roles):
    named = {column: role for role, column in by_name(header.split(";"), NAMES).items()}
    assert [named.get(column, "-") for column in header.split(";")] == roles.split()


def test_a_refusal_names_the_roles_that_were_found(tmp_path):
    path = write(tmp_path / "t.csv", "N° client,colour,Date\n1,red,2024-03-01\n")
    with pytest.raises(KarmafunnelError) as raised:
        look([path])
    assert raised.value.found.endswith("of these, time is 'Date', user is 'N° client'")


def test_a_french_export_needs_no_map(tmp_path):
    """Semicolons, decimal commas, a byte order mark, ids with leading zeros."""
    lines = [f"{u};{i};{t};12,{t % 100:02d};2" for u, i, t in rows_of()]
    sales = write(
        tmp_path / "ventes.csv",
        "Client;Produit;Horodatage;Prix unitaire;Quantité\r\n" + "\r\n".join(lines) + "\r\n",
        "utf-8-sig",
    )
    goods = write(
        tmp_path / "produits.csv",
        "Produit;Libellé;Rayon\n" + "".join(f"{i:04d};Thé n°{i};Épicerie|Thé\n" for i in range(11)),
    )
    log = imported(tmp_path, sales, goods)
    assert pairs(log) == rows_of()
    assert log.meta["label"] == "purchase" and log.has("price") and log.has("text")
    assert log.exposures["price_paid"][0] == pytest.approx(12 + START % 100 / 100) and set(
        log.exposures["quantity"]
    ) == {2}
    assert log.items.row(by_predicate=pl.col("item_id") == "0003", named=True)["category"] == [
        "Épicerie",
        "Thé",
    ]


def test_ratings_count_from_four_stars_on_and_the_others_are_counted(tmp_path):
    text = "userId,movieId,rating,timestamp\n" + "".join(
        f"{u},{i},{1 + n % 5},{t}\n" for n, (u, i, t) in enumerate(rows_of(100))
    )
    found = import_tables([write(tmp_path / "r.csv", text)], tmp_path / "log")
    assert found.map.rating == 4.0 and found.rows == 100
    log = Log.open(tmp_path / "log")
    assert log.requests.height == 40 and log.meta["set_aside"] == {
        "rows rated below 4": 60
    }


def test_events_are_clicks_and_purchases_by_their_names(tmp_path):
    kinds = ["view", "addtocart", "transaction"]
    text = "visitorid,itemid,event,timestamp\n" + "".join(
        f"{u},{i},{kinds[n % 3]},{1000 * t}\n" for n, (u, i, t) in enumerate(rows_of(90))
    )
    log = imported(tmp_path, write(tmp_path / "events.csv", text))
    assert int(log.exposures["clicked"].sum()) == 30 and int(log.exposures["purchased"].sum()) == 30
    assert log.requests.height == 60 and log.meta["label"] == "click"


def test_a_basket_is_one_request_and_its_units_add_up(tmp_path):
    text = "household_key,product_id,basket_id,quantity,sales_value,time\n"
    for basket in range(50):
        for product, many in ((1, 1), (2, 2), (1, 3)):
            text += f"{basket % 5},{product},b{basket},{many},{10 * many},{START + 3600 * basket + product}\n"
    log = imported(tmp_path, write(tmp_path / "t.csv", text))
    assert log.requests.height == 50 and log.exposures.height == 100
    first = log.exposures.filter(pl.col("request_id") == "b0").sort("item_id")
    assert first["quantity"].to_list() == [4, 2] and first["purchased"].all()
    assert first["price_paid"].to_list() == pytest.approx([(10 + 3 * 30) / 4, 20])
    assert log.requests["ts"][0] == datetime.fromtimestamp(START + 1, UTC)


def shop_rows(*lines: str) -> str:
    """Fifty baskets of the item "a", then these lines (user,item,basket,quantity,price)."""
    plain_lines = [f"{n % 5},a,b{n},1,2.5" for n in range(50)]
    text = "customer,sku,invoice,quantity,price,time\n"
    return text + "".join(f"{line},{START + 3600 * n}\n" for n, line in enumerate([*plain_lines, *lines]))


def test_returns_are_taken_off_their_basket_and_no_broken_rows(tmp_path):
    text = shop_rows(
        "1,x,p,3,4", "1,x,p,-1,4",  # one of three comes back
        "1,y,p,2,9", "1,y,p,-2,-9", "1,z,p,1,7",  # wholly returned
        "1,x,q,-1,4", "1,z,q,-5,7",  # a credit note: of an earlier basket
    )  # fmt: skip
    log = imported(tmp_path, write(tmp_path / "t.csv", text))
    last = log.exposures.filter(pl.col("request_id") == "p").sort("item_id")
    assert last["item_id"].to_list() == ["x", "z"] and last["quantity"].to_list() == [2, 1]
    assert last["price_paid"].to_list() == [4, 7] and last["purchased"].all()
    assert "q" not in log.requests["request_id"] and not (tmp_path / "log" / "rejected.parquet").exists()
    assert log.meta["set_aside"] == {"returns": 2, "returns taken off a purchase in the same request": 2}


@pytest.mark.parametrize(("per", "told"), [("event", r"none of 9 \(returns\)"), ("basket", "returns alone")])
def test_a_table_of_returns_alone_is_refused_as_that(per, told, tmp_path):
    lines = "".join(f"u,a,b{n},-1,{START + n}\n" for n in range(9))
    path = write(tmp_path / "t.csv", f"user,item,basket,quantity,time\n{lines}")
    with pytest.raises(KarmafunnelError, match=told):
        import_tables([path], tmp_path / "log", changes={"per": per})


def test_a_view_adds_no_unit_and_no_price_to_a_purchase(tmp_path):
    text = "user,session,item,event,quantity,price,time\n"
    for n in range(40):
        text += f"u{n % 5},s{n},a,view,,9,{START + 3600 * n}\nu{n % 5},s{n},a,purchase,2,5,{START + 3600 * n + 9}\n"
    log = imported(tmp_path, write(tmp_path / "t.csv", text), changes={"per": "session"})
    told = log.exposures.select("quantity", "price_paid", "price_shown").rows()
    assert told == [(2, 5.0, 9.0)] * 40
    assert log.exposures["clicked"].all() and log.exposures["purchased"].all()
    assert log.meta["set_aside"] == {"rows added to another of the same item and request": 40}


def test_an_item_has_its_first_price_whatever_comes_later(tmp_path):
    first, later = (
        imported(tmp_path / name, write(tmp_path / f"{name}.csv", shop_rows(f"1,a,z,1,{price}", f"1,b,z,1,{price}")))
        for name, price in (("one", 3), ("two", 99))
    )
    assert first.items["price"].to_list() == [2.5, 3] and later.items["price"].to_list() == [2.5, 99]
    found = look([tmp_path / "one.csv"])
    assert [(r.what, r.taken) for r in found.reasons if "first one" in r.why] == [("items: price", "price")]


def test_sessions_end_after_a_silence(tmp_path):
    text = "user,item,time\n"
    for day in range(30):
        for n, minutes in enumerate((0, 5, 50)):
            text += f"u{day % 3},i{n},{START + 86400 * day + 60 * minutes}\n"
    log = imported(tmp_path, write(tmp_path / "s.csv", text), changes={"per": "session"})
    assert log.requests.height == 60  # two a day
    assert log.exposures.group_by("request_id").len()["len"].value_counts().sort("len")[
        "len"
    ].to_list() == [1, 2]
    whole = import_tables(
        [tmp_path / "s.csv"], tmp_path / "wide", changes={"per": "session", "gap_minutes": 60.0}
    )
    assert whole.map.gap_minutes == 60 and Log.open(tmp_path / "wide").requests.height == 30


def test_lists_that_were_shown(tmp_path):
    text = "request_id,user_id,item_id,position,clicked,query,ts\n"
    for r in range(40):
        for place in range(1, 4):
            text += f"q{r},u{r % 4},i{(r + place) % 9},{place},{int(place == 2)},tea {r % 3},{START + 60 * r}\n"
    log = imported(tmp_path, write(tmp_path / "lists.csv", text))
    assert log.has("exposures") and log.has("query") and log.requests.height == 40
    assert (
        log.exposures["position"].to_list()[:3] == [1, 2, 3]
        and int(log.exposures["clicked"].sum()) == 40
    )


def test_prices_of_another_currency_are_left_out_and_counted(tmp_path):
    text = "user,item,time,price,currency\n" + "".join(
        f"{u},{i},{t},5,{'EUR' if n % 4 else 'USD'}\n" for n, (u, i, t) in enumerate(rows_of())
    )
    path = write(tmp_path / "m.csv", text)
    with pytest.raises(KarmafunnelError) as raised:
        import_tables([path], tmp_path / "log")
    assert "currenc" in raised.value.needs
    log = imported(tmp_path, path, changes={"currency": "EUR"})
    assert (
        log.meta["currency"] == "EUR"
        and log.meta["set_aside"]["prices in other currencies than EUR"] == 15
    )
    assert log.exposures["price_shown"].null_count() == 15


# -- shapes that shops export ---------------------------------------------------------------------


def test_a_column_named_as_a_time_is_the_time_or_nothing(tmp_path):
    """Long category ids look like nanoseconds."""
    rows = "".join(f"{u},{i},20530135637{n:08d},{{}}\n" for n, (u, i, _) in enumerate(rows_of()))
    text = "user_id,product_id,category_id,event_time\n" + rows
    path = write(tmp_path / "shop.csv", text.replace("{}", "2019-10-01 00:00:00 UTC"))
    found = look([path])
    assert found.map.columns["time"] == "event_time"
    path = write(tmp_path / "shop.csv", text.replace("{}", "a Tuesday"))
    with pytest.raises(KarmafunnelError) as raised:
        look([path])
    assert raised.value.what == "column 'event_time'" and "'a Tuesday'" in raised.value.found
    path = write(tmp_path / "shop.csv", text.replace("event_time", "when").replace("{}", "x"))
    with pytest.raises(KarmafunnelError, match="needs a column of times"):
        look([path])


def test_half_days_are_times(tmp_path):
    frame = pl.Series(["01/25/2023 3:05 PM", "01/26/2023 11:59 AM"])
    assert guess_time(frame)[0].format == "%m/%d/%Y %I:%M %p"


def test_what_is_liked_is_clicked_and_what_is_not_used_is_listed(tmp_path):
    text = "user,item,time,liked,colour\n" + "".join(
        f"{u},{i},{t},{'true' if n % 3 else 'false'},red\n" for n, (u, i, t) in enumerate(rows_of())
    )
    path = write(tmp_path / "rows.csv", text)
    log = imported(tmp_path, path)
    assert log.exposures["clicked"].sum() == 40
    (unused,) = [r.taken for r in look([path]).reasons if r.what == "not used"]
    assert unused == "colour"


def test_fields_of_objects_are_columns_and_lists_are_no_ids(tmp_path):
    lines = [
        json.dumps({"user": {"id": u, "age": n}, "item_id": i, "ts": t, "tags": ["a", "b"]})
        for n, (u, i, t) in enumerate(rows_of())
    ]
    path = write(tmp_path / "rows.jsonl", "\n".join(lines) + "\n")
    assert pairs(imported(tmp_path, path)) == rows_of()
    pl.read_ndjson(path).write_parquet(tmp_path / "rows.parquet")
    import_tables([tmp_path / "rows.parquet"], tmp_path / "other")
    assert pairs(Log.open(tmp_path / "other")) == rows_of()
    with pytest.raises(KarmafunnelError, match=r"found lists in \['tags'\]"):
        look([path], columns={"item": "tags"})


def test_a_column_of_baskets_that_is_mostly_empty_makes_no_requests(tmp_path):
    text = "user,item,timestamp,event,transactionid\n" + "".join(
        f"{u},{i},{t}," + ("view,\n" if n % 9 else f"transaction,{n}\n")
        for n, (u, i, t) in enumerate(rows_of())
    )
    log = imported(tmp_path, write(tmp_path / "events.csv", text))
    assert log.requests.height == 60 and log.exposures["purchased"].sum() == 7


@pytest.mark.parametrize("of_items", [True, False])
def test_titles_of_items_are_taken_and_those_of_reviews_are_not(of_items, tmp_path):
    text = "user,item,time,title\n" + "".join(
        f"{u},{i},{t},{f'thing {i}' if of_items else f'review {n}'}\n"
        for n, (u, i, t) in enumerate(rows_of())
    )
    log = imported(tmp_path, write(tmp_path / "rows.csv", text))
    assert log.meta["has"]["text"] == of_items
    if of_items:
        assert (log.items["title"] == "thing " + log.items["item_id"]).all()


def test_the_table_of_items_is_right_about_titles(tmp_path):
    text = "user,item,time,title\n" + "".join(f"{u},{i},{t},seen {i}\n" for u, i, t in rows_of())
    items = write(tmp_path / "items.csv", "item,title\n0000,listed\n")
    log = imported(tmp_path, write(tmp_path / "rows.csv", text), items)
    titles = dict(log.items.select("item_id", "title").iter_rows())
    assert titles["0000"] == "listed" and titles["0001"] == "seen 0001"


def test_utf_16_is_read(tmp_path):
    assert pairs(imported(tmp_path, write(tmp_path / "rows.csv", plain_csv(), "utf-16"))) == rows_of()


@pytest.mark.parametrize(
    ("name", "text", "needs"),
    [
        ("rows.json", '[{"user": "a", "item": "b", "time": 1}]', "one JSON object a line"),
        ("rows.csv", "17,54,1600000000\n18,54,1600000001\n", "a first line with the names"),
    ],
)
def test_other_layouts_are_refused_by_what_they_are(name, text, needs, tmp_path):
    with pytest.raises(KarmafunnelError) as raised:
        look([write(tmp_path / name, text)])
    assert raised.value.needs.startswith(needs)


def test_positions_within_sessions_are_lists(tmp_path):
    text = "user,item,time,session,position,clicked\n" + "".join(
        f"u{n // 5},i{n},{START + 60 * n},s{n // 5},{n % 5 + 1},{int(n % 5 == 2)}\n" for n in range(60)
    )
    log = imported(tmp_path, write(tmp_path / "lists.csv", text))
    assert log.requests.height == 12 and log.meta["has"]["exposures"]


def test_a_log_that_fails_a_check_is_named_as_it_was_to_be(tmp_path):
    text = "user,item,time,position\n" + "".join(
        f"{u},{i},{t},{n + 2}\n" for n, (u, i, t) in enumerate(rows_of())
    )
    with pytest.raises(KarmafunnelError, match="fails the check 'positions'") as raised:
        imported(tmp_path, write(tmp_path / "rows.csv", text), columns={"position": "position"})
    assert ".tmp" not in str(raised.value) and "--per" in raised.value.hint


@pytest.mark.parametrize(
    ("text", "number"), [("1,234", 1234), ("1,234,567.5", 1234567.5), ("12,5", None), ("7", 7)]
)
def test_commas_between_thousands(text, number):
    assert numbers(pl.Series([text, None])).to_list() == [number, None]


def test_what_is_told_replaces_the_guess(tmp_path):
    text = "user,item,time,rating\n" + "".join(
        f"{u},{i},{t},{n % 5 + 1}\n" for n, (u, i, t) in enumerate(rows_of())
    )
    found = look([write(tmp_path / "rows.csv", text)], changes={"rating": 3.0})
    said = [(r.what, r.taken) for r in found.reasons]
    assert ("rating", "3.0") in said and "click" not in dict(said)


# -- bad input -------------------------------------------------------------------------------------


def test_more_than_one_row_in_a_hundred_is_refused_unless_allowed(tmp_path):
    path = write(tmp_path / "rows.csv", plain_csv(100) + "u,i,never\n" * 3)
    with pytest.raises(KarmafunnelError) as raised:
        import_tables([path], tmp_path / "log")
    assert (
        raised.value.found.startswith("3 of 103 (time cannot be read: 3)")
        and "row 101" in raised.value.found
    )
    assert not (tmp_path / "log").exists() and not list(tmp_path.glob(".*"))
    assert import_tables([path], tmp_path / "log", allow_rejects=True).rejects.count == 3


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_rows_that_cannot_be_split_are_rows(suffix, tmp_path):
    lines = [f"{u},{i},{t}" for u, i, t in rows_of(100)]
    if suffix == "jsonl":
        lines = [json.dumps(dict(zip(("user", "item", "time"), row, strict=True))) for row in rows_of(100)]
    else:
        lines.insert(0, "user,item,time")
    path = write(tmp_path / f"rows.{suffix}", "\n".join([*lines, "{,,,,", "{,,,,", ""]))
    with pytest.raises(KarmafunnelError) as raised:
        import_tables([path], tmp_path / "log")
    assert raised.value.found.startswith("2 of 102 (")


def test_a_path_that_names_nothing(tmp_path):
    with pytest.raises(KarmafunnelError) as raised:
        look([tmp_path / "none.csv"])
    assert raised.value.who == "import" and str(tmp_path) in raised.value.found


# -- the map ---------------------------------------------------------------------------------------


def test_the_map_says_what_was_done_and_does_it_again(tmp_path):
    path = write(tmp_path / "rows.csv", plain_csv())
    first = import_tables([path], tmp_path / "log")
    again = ColumnMap.read(tmp_path / "log" / "import.toml")
    assert again == first.map
    import_tables([path], tmp_path / "again", given=again)
    for name in ("items", "requests", "exposures"):
        assert (tmp_path / "log" / f"{name}.parquet").read_bytes() == (
            tmp_path / "again" / f"{name}.parquet"
        ).read_bytes()


@pytest.mark.parametrize(
    "made",
    [
        ColumnMap(
            "a",
            {"user": 'u "q"', "item": "i", "time": "t"},
            {"item": "x"},
            "session",
            5.0,
            Times("ms"),
            ",",
            4.0,
            ("a",),
            ("b", "c"),
            "EUR",
        ),
        ColumnMap("b", {"user": "u"}, time=Times(format="%d/%m/%Y", zone="Europe/Paris")),
    ],
)
def test_a_map_comes_back_from_its_file(made, tmp_path):
    (tmp_path / "m.toml").write_text(made.toml())
    assert ColumnMap.read(tmp_path / "m.toml") == made


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("per = 'month'", "per needs one of event"),
        ("[columns]\ncolour = 'c'", "columns needs roles among"),
        ("nothing = 1", "needs keys among"),
        ("decimal = 3", "decimal needs another kind"),
        ("[time]\nunit = 'h'", "time.unit needs one of s"),
        ("= 1", "needs a TOML file"),
        ("gap_minutes = -1", "gap_minutes needs"),
    ],
)  # fmt: skip
def test_a_wrong_map_is_refused_by_key(text, words, tmp_path):
    path = write(tmp_path / "m.toml", text)
    with pytest.raises(KarmafunnelError) as raised:
        ColumnMap.read(path)
    assert str(path) in str(raised.value) and words in str(raised.value)


def test_a_map_that_names_a_missing_column(tmp_path):
    made = ColumnMap("a", {"user": "user", "item": "product", "time": "time"}, time=Times("s"))
    with pytest.raises(KarmafunnelError) as raised:
        import_tables([write(tmp_path / "rows.csv", plain_csv())], tmp_path / "log", given=made)
    assert raised.value.found == "['product']"


def test_many_rows_in_buckets_are_those_in_one(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    text = "user,item,time\n" + "".join(
        f"{u},{i},{START + t}\n" for u, i, t in rng.integers(0, 50, (500, 3))
    )
    path = write(tmp_path / "rows.csv", text)
    import_tables([path], tmp_path / "one")
    monkeypatch.setattr("karmafunnel.simulator.importing.assembling.BUCKET", 60)
    import_tables([path], tmp_path / "many")
    for name in ("items", "requests", "exposures"):
        frames = [
            pl.read_parquet(tmp_path / folder / f"{name}.parquet") for folder in ("one", "many")
        ]
        assert frames[0].equals(frames[1])


def test_again_is_the_same_bytes_and_another_map_needs_force(tmp_path):
    path = write(tmp_path / "ratings.csv", "user,item,rating,time\n" + "".join(
        f"{u},{i},{1 + n % 5},{t}\n" for n, (u, i, t) in enumerate(rows_of(100))
    ))  # fmt: skip
    log, run = tmp_path / "log", CliRunner().invoke

    def written() -> dict[str, bytes]:
        return {part.name: part.read_bytes() for part in log.iterdir()}

    command = ["import", str(path), str(log)]
    assert run(main, command).exit_code == 0
    first = written()
    assert run(main, command).exit_code == 0 and written() == first
    told = run(main, [*command, "--rating", "3"])
    assert told.exit_code == 1 and "holds a log with rating 4.0; to replace it by one with rating 3.0, use --force" in (
        " ".join(told.output.split())
    )
    (log / "import.toml").write_text((log / "import.toml").read_text().replace("rating = 4.0", "rating = 2.0"))
    told = run(main, command)
    assert told.exit_code == 1 and "was edited by hand" in " ".join(told.output.split())
    assert run(main, [*command, "--force"]).exit_code == 0 and written() == first
    assert run(main, [*command, "--rating", "3", "--force"]).exit_code == 0 and written() != first


# -- the command -----------------------------------------------------------------------------------


def test_requests_without_a_query_are_browsing(tmp_path):
    text = "request_id,user_id,item_id,clicked,query,ts\n"
    for r in range(40):
        for place in range(3):
            query = "" if r % 4 == 0 else f"tea {r}"
            text += f"q{r},u{r % 4},i{(r + place) % 9},{int(place == 2)},{query},{START + 60 * r}\n"
    path = write(tmp_path / "rows.csv", text)
    answer = CliRunner().invoke(main, ["import", str(path), str(tmp_path / "log")])
    assert answer.exit_code == 0, answer.output
    assert "10 (25.0%) of the requests have no query: they are taken as browsing" in answer.output
    log = Log.open(tmp_path / "log")
    assert log.meta["scenario"] == ["search", "browse"] and log.in_scenario.all()
    assert (log.requests["source"] == "browse").to_list() == log.requests["query"].is_null().to_list()
    checked = CliRunner().invoke(main, ["validate", str(tmp_path / "log")])
    assert checked.exit_code == 0, checked.output


def test_the_command_says_what_it_took_and_how_to_go_on(tmp_path):
    path = write(tmp_path / "rows.csv", plain_csv())
    answer = CliRunner().invoke(main, ["import", str(path), str(tmp_path / "log")])
    assert answer.exit_code == 0, answer.output
    assert (
        "its name; seconds since 1970" in " ".join(answer.output.split())
        and "karmafunnel replay baseline" in answer.output
    )
    refused = CliRunner().invoke(
        main, ["import", str(path), str(tmp_path / "log"), "--column", "colour=x"]
    )
    assert refused.exit_code == 2 and "needs ROLE=NAME" in refused.output
    guessed = CliRunner().invoke(
        main, ["import", str(path), str(tmp_path / "other"), "--guess", str(tmp_path / "g.toml")]
    )
    assert guessed.exit_code == 0 and not (tmp_path / "other").exists()
    assert ColumnMap.read(tmp_path / "g.toml").columns == {
        "user": "user",
        "item": "item",
        "time": "time",
    }


@pytest.mark.parametrize("columns", ["40", "68", "120"])
def test_every_role_is_printed_at_every_width(columns, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    path = write(tmp_path / "rows.csv", shop_rows())
    answer = CliRunner().invoke(main, ["import", str(path), str(tmp_path / "log")])
    assert answer.exit_code == 0
    for column in ("customer", "sku", "invoice", "quantity", "items: price"):
        assert column in " ".join(answer.output.split()), (column, answer.output)


def priced(folder: Path, name: str, prices: list[str]) -> Path:
    rows = [f"u{n % 5};i{n};{START + 60 * n};{price}" for n, price in enumerate(prices)]
    return write(folder / name, "\n".join(["user;item;time;price", *rows]) + "\n")


def test_each_file_has_its_own_decimal_mark(tmp_path):
    """4,95 in one file and 4.95 in another are the same price, and numbers are what they are."""
    rows = priced(tmp_path, "rows.csv", ["4,95", "1.234,50"] * 20)
    goods = write(tmp_path / "items.csv", "item,price\n" + "".join(f"i{n},{p}\n" for n, p in enumerate(["4.95", "1234.5"] * 20)))
    floats = tmp_path / "items.parquet"
    pl.DataFrame({"item": [f"i{n}" for n in range(40)], "price": [2.95, 0.5] * 20}).write_parquet(floats)
    for name, items, listed in (("text", goods, [4.95, 1234.5]), ("floats", floats, [2.95, 0.5])):
        log = imported(tmp_path / name, rows, items)
        frame = log.exposures.join(log.items, on="item_id").sort("price_shown", "item_id")
        assert frame["price_shown"].to_list() == [4.95] * 20 + [1234.5] * 20
        assert frame["price"].to_list() == [listed[0]] * 20 + [listed[1]] * 20


def test_numbers_in_a_frame_are_not_read_as_text(tmp_path):
    frame = pl.DataFrame({"user": ["u", "v"] * 20, "item": [f"i{n}" for n in range(40)], "time": range(START, START + 40), "price": [4.5, 1250.0] * 20})
    log = FrontLog.from_interactions(frame, decimal=",")
    assert sorted(set(log.exposures["price_shown"])) == [4.5, 1250.0]


def test_a_price_with_another_decimal_mark_is_rejected(tmp_path):
    """9.95 among decimal commas is not 995, nor 4,95 among decimal points 495."""
    for name, many, odd in (("comma", "4,95", "9.95"), ("point", "4.95", "9,95")):
        found = import_tables([priced(tmp_path, "rows.csv", [many] * 199 + [odd])], tmp_path / name)
        assert found.rejects.reasons == {"price cannot be read": 1} and found.rejects.rows[0]["row"] == 200
        assert set(Log.open(tmp_path / name).exposures["price_shown"]) == {4.95}
    with pytest.raises(KarmafunnelError, match="price cannot be read: 20"):
        import_tables([priced(tmp_path, "rows.csv", ["4,95"] * 30 + ["9.95"] * 20)], tmp_path / "half")


def test_times_at_an_offset_are_moments(tmp_path):
    """START is in UTC whatever the offset at which it is written, in files and frames."""
    moments = pa.array([1000 * (START + 60 * n) for n in range(40)], pa.timestamp("ms", "+05:30"))
    table = pa.table({"user": ["u", "v"] * 20, "item": [f"i{n}" for n in range(40)], "time": moments})
    pq.write_table(table, tmp_path / "rows.parquet")
    expected = [START + 60 * n for n in range(40)]
    logs = [imported(tmp_path, tmp_path / "rows.parquet")]
    logs += [FrontLog.from_interactions(frame) for frame in (table, table.to_pandas())]
    for log in logs:
        assert log.requests["ts"].dt.epoch("s").to_list() == expected


@pytest.mark.parametrize(("kind", "words"), [(pa.time64("us"), "times of a day"), (pa.duration("ms"), "spans of time")])
def test_times_without_a_day_are_refused(kind, words, tmp_path):
    times = pa.array(range(40), pa.int64()).cast(kind)
    table = pa.table({"user": ["u"] * 40, "item": [f"i{n}" for n in range(40)], "time": times})
    pq.write_table(table, tmp_path / "rows.parquet")
    columns = {"user": "user", "item": "item", "time": "time"}
    for given in (None, ColumnMap(columns=columns)):
        with pytest.raises(KarmafunnelError, match=r"rows\.parquet: column 'time' needs times with a day") as raised:
            import_tables([tmp_path / "rows.parquet"], tmp_path / "log", given=given)
        assert words in str(raised.value)


def flat_table(folder: Path, head: str = "client,article,date,prix,rayon,marque", levels: str = "Thé > Vert") -> Path:
    """Item n, of 10, is of the category "Thé > Vert" and of the brand "m0" or "m1"."""
    rows = [f"u{n % 7},a{n % 10},{START + 60 * n},2.50,{levels},m{n % 10 % 2}" for n in range(60)]
    return write(folder / "rows.csv", "\n".join([head, *rows]) + "\n")


@pytest.mark.parametrize("told", [False, True])
def test_categories_and_brands_of_a_flat_table(told, tmp_path):
    head = "client,article,date,prix,x1,x2" if told else "client,article,date,prix,rayon,marque"
    columns = {"category": "x1", "brand": "x2"} if told else None
    log = imported(tmp_path, flat_table(tmp_path, head), columns=columns)
    rows = log.items.sort("item_id").select("item_id", "brand", "category").rows()
    assert rows == [(f"a{n}", f"m{n % 2}", ["Thé", "Vert"]) for n in range(10)]
    again = imported(tmp_path / "again", tmp_path / "rows.csv", given=ColumnMap.read(tmp_path / "log" / "import.toml"))
    assert again.items.equals(log.items)


def test_categories_of_rows_are_not_those_of_items(tmp_path):
    """A category that differs from row to row of an item says nothing about the item."""
    rows = [f"u{n % 7},a{n % 10},{START + 60 * n},kind {n % 7}" for n in range(60)]
    log = imported(tmp_path, write(tmp_path / "rows.csv", "\n".join(["user,item,time,category", *rows]) + "\n"))
    assert log.items["category"].null_count() == 10


def test_fractional_quantities_are_refused_with_the_way_out(tmp_path):
    rows = [f"u{n % 7},a{n % 10},b{n},{START + 60 * n},{(1, 0.5)[n % 2]}" for n in range(60)]
    path = write(tmp_path / "rows.csv", "\n".join(["user,item,basket,time,quantity", *rows]) + "\n")
    with pytest.raises(KarmafunnelError, match="quantity is no whole number: 30") as raised:
        imported(tmp_path, path)
    assert "--column quantity=" in raised.value.hint
    log = imported(tmp_path, path, columns={"quantity": ""})
    assert log.exposures.height == 60 and log.exposures["purchased"].all()


def test_a_lone_letter_is_no_role(tmp_path):
    """ "a" is not "aid", the article id of one source."""
    (tmp_path / "x.csv").write_text("a;b;c\n1;2;3\n")
    with pytest.raises(KarmafunnelError) as raised:
        import_tables([tmp_path / "x.csv"], tmp_path / "log")
    assert raised.value.needs == "a column of items" and " is " not in raised.value.found
