"""Real-data sources: on hand-made files in the publishers' formats, on generated ones, and on the
raw data where it lies.
"""

import csv
import gzip
import importlib
import json
import re
import tempfile
from collections import defaultdict
from functools import cache
from io import StringIO
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import raw_files
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from karmafunnel.checks import require, validate
from karmafunnel.cli import main
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Catalogue, Log, read
from karmafunnel.simulator.datasets import SOURCES, _raw, convert, describe, load, reader
from raw_files import lay

pytestmark = pytest.mark.slow

# -- hand-made files in the publishers' formats ----------------------------------------------------

TRIVAGO = [
    "user_id,session_id,timestamp,step,action_type,reference,platform,city,device,"
    "current_filters,impressions,prices",
    'u1,s1,1541600000,1,search for destination,"Rome, Italy",IT,"Rome, Italy",mobile,,,',
    'u1,s1,1541600010,2,interaction item image,11,IT,"Rome, Italy",mobile,,,',
    'u1,s1,1541600020,3,clickout item,12,IT,"Rome, Italy",mobile,4 Star|Sort by Price,'
    "11|12|13,80|95|70",
    'u1,s1,1541600030,4,interaction item info,unknown,IT,"Rome, Italy",mobile,,,',
    'u2,s2,1541600005,1,clickout item,99,DE,"Ulm, Germany",desktop,,21|22,50|60',
    'u2,s2,1541600040,2,search for item,21,DE,"Ulm, Germany",desktop,,,',
    'u2,s2,1541600050,3,clickout item,11,DE,"Ulm, Germany",desktop,,11|21,81|51',
    'u2,s2,1541600060,1,filter selection,4 Star,DE,"Ulm, Germany",desktop,4 Star,,',
    'u3,s3,1541600070,1,clickout item,,DE,"Ulm, Germany",desktop,,21|22,50|60',
    'u3,s3,1541600080,2,clickout item,22,DE,"Ulm, Germany",desktop,,,',
]

RETAIL = [
    "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country",
    "1,10001,?,10,2010-12-01 08:00:00,0.0,,United Kingdom",  # a note: no title
    "1,10001,RED  LAMP ,2,2010-12-01 08:00:00,3.0,77.0,France",
    # added up: 4 units, money 10, unit price 2.5
    "1,10001,RED LAMP,2,2010-12-01 08:01:00,2.0,77.0,France",
    "1,POST,POSTAGE,1,2010-12-01 08:00:00,18.0,77.0,France",
    "2,10001,LAMP NEW NAME,5,2010-12-02 09:00:00,4.0,77.0,France",
    "2,10002a,MUG,1,2010-12-02 09:00:00,1.5,77.0,France",
    "2,10003,FREE SPOON,9,2010-12-02 09:00:00,0.0,77.0,France",
    # 5 from invoice 2, 1 from invoice 1
    "C3,10001,RED LAMP,-6,2010-12-03 10:00:00,4.0,77.0,France",
    "C3,10002A,MUG,-1,2010-12-03 10:00:00,1.5,77.0,France",  # invoice 2 is left empty
    "C3,10004,OLD VASE,-3,2010-12-03 10:00:00,9.0,77.0,France",  # bought before the log begins
    "4,10002A,MUG,7,2010-12-04 11:00:00,1.5,88,Spain",
    # earlier than the purchase: does not touch it
    "C5,10002A,MUG,-7,2010-12-04 10:59:00,1.5,88,Spain",
    "6,10002A,MUG,2,2010-12-05 11:00:00,1.5,,Spain",
    "7,22016,Gift Voucher,1,2010-12-06 11:00:00,10,88,Spain",
]

OFFICE_ITEMS = {
    str(i): {
        "title": f"Pen &amp; Ink {i}",
        "description": "",
        "brand": "Visit Amazon's Bic Page",
        "categories": "",
    }
    for i in range(9)
}
OFFICE_ITEMS["0"]["description"] = "['<!-- .x {a:b} --> Blue <b>ink</b>.', 'Dries &lt;1 s', '']"
OFFICE_ITEMS["1"]["description"] = "['a 1\" pen', 'badly \" quoted'\"]"
OFFICE = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid"


def office_row(user: str, history: list[int], item: int) -> str:
    sids = str([f"<a_{i}><b_0>" for i in history])
    return f'{user},"[]",t,"{history}",{item},"{sids}",<a_{item}><b_0>'


OFFICE_VALID = [
    OFFICE,
    office_row("A", [0, 1], 2),
    office_row("B", [3, 4, 5], 6),
    office_row("A", [0, 1, 2], 3),
    office_row("D", [1], 0),
]
OFFICE_TEST = [
    OFFICE,
    office_row("B", [3, 4, 5, 6], 4),
    office_row("A", [0, 1, 2, 3], 5),
    office_row("C", [7, 8], 0),
]

GAMES_ITEM = ["item_id:token\ttitle:token_seq", *[f'{i}\tGame "{i}" &amp; more' for i in range(9)]]
GAMES = "user_id:token\titem_id_list:token_seq\titem_id:token"
GAMES_VALID = [GAMES, "0\t0 1 2\t3", "1\t4 5\t6", "2\t1\t2", "3\t0\t4"]
GAMES_TEST = [GAMES, "0\t0 1 2 3\t7", "1\t4 5 6\t8", "2\t1 2\t0", "3\t0 4\t5"]

PRODUCT = {
    "parent_asin": "A1",
    "title": "Caf&eacute; <b>Mug</b>",
    "features": ["big", "blue<br>"],
    "description": ["One.", "Two."],
    "price": "from 5.99",
    "categories": ["Home", "Kitchen", "Mugs"],
    "store": "Lavo",
    "main_category": "Amazon Home",
    "average_rating": 4.5,
    "rating_number": 7,
    "details": json.dumps({"Color": "Blue", "Ranks": {"Home": 3}, "Audio": ["en", "de"]}),
    "bought_together": None,
    "subtitle": None,
    "author": None,
    "videos": {"title": ["x"], "url": ["https://v/1"], "user_id": [""]},
    "images": {
        "hi_res": [None, "https://i/2h"],
        "large": ["https://i/1", "https://i/2"],
        "thumb": ["t", "t"],
        "variant": ["MAIN", "PT01"],
    },
}
NO_IMAGES: dict[str, list[str]] = {"hi_res": [], "large": [], "thumb": [], "variant": []}
CATALOG = [
    json.dumps(product)
    for product in (
        PRODUCT,
        PRODUCT
        | {"parent_asin": "A2", "price": "—", "categories": []}
        | {"store": None, "images": NO_IMAGES},
        PRODUCT
        | {
            "parent_asin": "A3",
            "price": "1,299.50",
            "title": "",
            "videos": {"title": [], "url": [], "user_id": []},
        },
    )
]

ESHOP = [
    "year,month,day,order,country,session.ID,page.1..main.category.,page.2..clothing.model.,"
    "colour,location,model.photography,price,price.2,page",
    "2008,4,1,1,29,1,1,A5,1,5,1,28,2,1",
    "2008,4,1,2,29,1,2,B7,10,2,2,52,1,3",
    "2008,4,1,1,9,2,1,A5,1,5,1,28,2,1",
    "2008,4,2,1,9,3,4,B7,10,2,2,52,1,3",
    "2008,4,3,1,9,4,1,A5,1,5,1,28,2,1",
]

ROCKET = [
    "timestamp,visitorid,event,itemid,transactionid",
    "1433221332117,257597,view,11,",
    "1433221340000,257597,addtocart,11,",
    "1433221350000,257597,transaction,11,500",
    "1433221350000,257597,transaction,12,500",
    "1433221350000,257597,transaction,12,500",  # an item twice
    "1433321350000,992329,view,12,",
    "1433421350000,992329,view,13,",
]
ROCKET_PROPERTIES = "timestamp,itemid,property,value"
ROCKET_PART1 = [
    ROCKET_PROPERTIES,
    "1435460400000,11,categoryid,3",
    "1434460400000,11,categoryid,4",  # the earlier one
    "1434460400000,11,790,n552.000",
]
ROCKET_PART2 = [ROCKET_PROPERTIES, "1434460400000,12,categoryid,3", "1434460400000,12,888,1 2"]
ROCKET_TREE = ["categoryid,parentid", "4,3", "3,1", "1,"]

FASHION = [
    "t_dat,customer_id,article_id,price,sales_channel_id",
    "2018-09-20,c1,0108775015,0.05,2",
    "2018-09-20,c1,0108775015,0.03,2",  # two units
    "2018-09-20,c1,0663713001,0.02,1",
    "2018-09-21,c1,0663713001,0.02,1",
    "2018-09-22,c2,0108775044,0.01,2",
    "2018-09-23,c2,0108775015,0.05,2",
]
ARTICLES = [
    "article_id,product_code,prod_name,product_type_name,product_group_name,index_group_name,"
    "detail_desc",
    "0108775015,0108775,Strap top,Vest top,Garment Upper body,Ladieswear,"
    '"Jersey top with narrow straps, soft."',
    "0108775044,0108775,Strap top (1),Vest top,Garment Upper body,Ladieswear,Jersey top.",
    "0663713001,0663713,Atlanta Push Body,Underwear body,Underwear,Ladieswear,",
]

YOO_CLICKS = [
    "1,2014-04-07T10:51:09.277Z,214536502,0",
    "1,2014-04-07T10:54:09.868Z,214536500,S",
    "2,2014-04-08T13:56:37.614Z,214662742,0",
    "3,2014-04-09T13:17:46.940Z,214716935,1",
]
YOO_BUYS = [
    "1,2014-04-07T10:58:00.306Z,214536502,1046,2",
    "3,2014-04-09T13:30:00.000Z,214716935,0,0",  # not recorded
]

OTTO = [
    json.dumps(
        {
            "session": session,
            "events": [
                {"aid": aid, "ts": 1661724000278 + 86_400_000 * session + k, "type": kind}
                for k, (aid, kind) in enumerate(events)
            ],
        }
    )
    for session, events in enumerate(
        [
            [(1517085, "clicks"), (1563459, "carts"), (1563459, "orders")],
            [(1309446, "clicks")],
            [(1517085, "clicks"), (16246, "clicks")],
        ]
    )
]

REVIEWS_2018 = [
    json.dumps(
        {"overall": 5.0, "verified": True, "reviewTime": "10 17, 2015", "reviewerID": user}
        | {"asin": item, "reviewText": "x", "unixReviewTime": 1445040000 + 86_400 * day}
    )
    for user, item, day in [("A1", "B01", 0), ("A1", "B02", 1), ("A2", "B01", 2), ("A2", "B03", 3)]
]
META_2018 = [
    json.dumps(
        {"asin": f"B0{i}", "title": f"Game &amp; Co {i}", "brand": "Lavo", "price": price}
        | {"category": ["Video Games", "<b>PC</b>"], "description": ["One.", "Two."]}
        | {"main_cat": "Video Games", "feature": [], "also_buy": []}
    )
    for i, price in ((1, "$1,012.50"), (2, ""), (3, "$3.00 - $5.00"))
]
RATINGS_2023 = [
    "user_id,parent_asin,rating,timestamp",
    "A1,B01,5.0,1445040000123",
    "A1,B02,2.0,1445140000123",
    "A2,B01,4.0,1445240000123",
    "A2,B03,4.0,1445340000123",
]
META_2023 = [
    json.dumps(
        {"parent_asin": f"B0{i}", "title": f"Game {i}", "store": "Lavo", "price": price}
        | {"categories": [], "main_category": "Video Games", "description": [], "features": []}
        | {"details": {"Color": "Blue"}, "videos": [{"url": "https://v/1"}], "average_rating": 4.0}
        | {"images": [{"large": "https://i/1", "hi_res": None, "thumb": "t", "variant": "MAIN"}]}
        | {"rating_number": 7, "bought_together": None}
    )
    for i, price in ((1, 12.5), (2, None), (3, "from 3.00"))
]

RATINGS = [
    "userId,movieId,rating,timestamp",
    "1,31,4.5,1260759144",
    "1,1029,3.0,1260759179",  # set aside
    "2,10,4.0,1260759185",
    "2,31,5.0,1260859185",
    "3,10,4.0,1260959185",
]
MOVIES = [
    "movieId,title,genres",
    "10,GoldenEye (1995),Action|Adventure|Thriller",
    "31,Dangerous Minds (1995),Drama",
    '1029,"Dumbo, again (1941)",Animation|Children|Drama|Musical',
]

FILES: dict[str, dict[str, list[str]]] = {
    "trivago": {"train.csv": TRIVAGO},
    "online_retail": {"online_retail.csv": RETAIL},
    "amazon_office": {
        "Office_Products.item.json": [json.dumps(OFFICE_ITEMS)],
        "Office_Products.valid.csv": OFFICE_VALID,
        "Office_Products.test.csv": OFFICE_TEST,
    },
    "amazon_games": {
        "Games-6k.item": GAMES_ITEM,
        "Games-6k.valid.inter": GAMES_VALID,
        "Games-6k.test.inter": GAMES_TEST,
    },
    "amazon_catalog": {"catalog.jsonl": CATALOG},
    "eshop_clothing": {"e-shop_clothing_2008.csv": ESHOP},
    "retailrocket": {
        "events.csv": ROCKET,
    },
    "hm": {"transactions_train.csv": FASHION, "articles.csv": ARTICLES},
    "yoochoose": {"yoochoose-clicks.dat": YOO_CLICKS, "yoochoose-buys.dat": YOO_BUYS},
    "otto": {"otto-recsys-train.jsonl": OTTO},
    "amazon_2018": {"Video_Games_5.json": REVIEWS_2018, "meta_Video_Games.json": META_2018},
    "amazon_2023": {"Video_Games.csv": RATINGS_2023, "meta_Video_Games.jsonl": META_2023},
    "movielens": {"ratings.csv": RATINGS, "movies.csv": MOVIES},
} | raw_files.FILES


def made(tmp_path: Path, source: str, **changed: list[str]) -> Log:
    loaded = load(source, lay(tmp_path / source, FILES[source] | changed))
    assert isinstance(loaded, Log)
    return loaded


def rows(log: Log) -> pl.DataFrame:
    """Exposures beside their requests, in the log's order."""
    order = log.requests.with_row_index("row")
    return log.exposures.join(order, on="request_id", maintain_order="left").sort(
        "row", maintain_order=True
    )


# -- every source ----------------------------------------------------------------------------------


def test_each_source_has_a_reader_and_a_description():
    assert set(FILES) <= set(SOURCES)
    here = Path(_raw.__file__).parent
    modules = {path.stem for path in here.glob("[!_]*.py")}
    maps = {path.name.removesuffix(".map.toml") for path in here.glob("*.map.toml")}
    assert modules | maps == set(SOURCES)
    for source in SOURCES:
        about = describe(source)
        assert len(about.title) <= 44 and not about.title.endswith("."), source
        texts = (about.about, about.requests, about.licence, *about.lacks)
        assert all(text.strip() for text in texts) and about.lacks and about.holds, source
        assert "https://" in about.home, source
        module = reader(source)
        assert module is None or callable(module.tables if source in maps else module.load)
        for variant in about.variants or (None,):
            assert about.files_of(variant), source
            for file in about.files_of(variant):
                assert file.url.startswith("https://") or file.how, (source, file.name)
                assert re.fullmatch(r"|md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", file.checksum), source


def test_unknown_source_names_those_that_exist(tmp_path):
    with pytest.raises(KarmafunnelError, match=r"found 'trivagoo'; did you mean trivago"):
        convert("trivagoo", tmp_path, tmp_path / "log")


@pytest.mark.parametrize("source", FILES)
def test_converted_log_reads_back_the_same(source, tmp_path):
    folder = tmp_path / "log"
    loaded = convert(source, lay(tmp_path / "raw", FILES[source]), folder)
    back = read(folder)
    assert type(back) is type(loaded)
    assert back.items.equals(loaded.items) and back.items["item_id"].is_unique().all()
    assert back.meta["name"] == source
    assert back.meta["licence"]
    assert back.meta["source"]
    assert set(describe(source).lacks) <= set(back.meta["lacks"])
    assert {name for name, there in back.meta["has"].items() if there} == set(describe(source).holds)
    if isinstance(back, Log) and isinstance(loaded, Log):
        assert back.requests.equals(loaded.requests) and back.exposures.equals(loaded.exposures)
        assert (
            back.requests["request_id"].is_unique().all()
            and back.requests["user_id"].null_count() == 0
        )
        assert set(back.exposures["item_id"]) <= set(back.items["item_id"])
        assert back.exposures.select("request_id", "item_id").is_unique().all()
        assert len(back.truth(back.meta["label"])) > 0


@pytest.mark.parametrize("source", FILES)
def test_missing_file_says_which_and_where_to_get_it(source, tmp_path):
    optional = {name for file in describe(source).files if file.optional for name in file.result}
    for name in set(FILES[source]) - optional:
        folder = lay(
            tmp_path / name,
            {other: lines for other, lines in FILES[source].items() if other != name},
        )
        with pytest.raises(KarmafunnelError) as error:
            load(source, folder)
        assert name in str(error.value) and "https://" in str(error.value)
    with pytest.raises(KarmafunnelError, match="no such folder"):
        load(source, tmp_path / "nowhere")


@pytest.mark.parametrize("source", FILES)
def test_truncated_or_foreign_file_is_refused_by_name(source, tmp_path):
    for name, lines in FILES[source].items():
        if isinstance(lines, pl.DataFrame):
            folder = lay(tmp_path / "raw", FILES[source])
            whole = (folder / name).read_bytes()
            for broken in (whole[: len(whole) // 2], b"", b"\x00\x01"):
                (folder / name).write_bytes(broken)
                with pytest.raises(KarmafunnelError, match=re.escape(name)):
                    load(source, folder)
            continue
        text = "\n".join(lines)
        last = lines[-1]
        cut = text[: len(text) - len(last) + max(1, len(last) // 8)]  # the last line breaks off
        for broken in (cut, "", "a,b\n1,2\n", "\x00\x01"):
            folder = lay(tmp_path / "raw", FILES[source])
            (folder / name).write_text(broken)
            with pytest.raises(KarmafunnelError) as error:
                load(source, folder)
            assert name in str(error.value), (broken, error.value)


@pytest.mark.parametrize(
    ("source", "name", "column"),
    [
        ("trivago", "train.csv", "impressions"),
        ("online_retail", "online_retail.csv", "CustomerID"),
        ("amazon_office", "Office_Products.test.csv", "history_item_id"),
        ("amazon_games", "Games-6k.item", "title:token_seq"),
        ("eshop_clothing", "e-shop_clothing_2008.csv", "colour"),
    ],
)
def test_missing_column_is_named(source, name, column, tmp_path):
    header, *rest = FILES[source][name]
    folder = lay(tmp_path, FILES[source] | {name: [header.replace(column, "other"), *rest]})
    with pytest.raises(KarmafunnelError) as error:
        load(source, folder)
    assert name in str(error.value)
    assert f"missing ['{column}']" in str(error.value)
    assert "other" in str(error.value)


def test_truncated_gzip_and_parquet_are_refused(tmp_path):
    packed = gzip.compress("\n".join(RETAIL * 50).encode())
    (tmp_path / "online_retail.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(KarmafunnelError, match=r"online_retail\.csv\.gz"):
        load("online_retail", tmp_path)
    lay(tmp_path / "t", {"train.csv": TRIVAGO})
    parquet = tmp_path / "t" / "trivago_val_100k.parquet"
    pl.read_csv(tmp_path / "t" / "train.csv").write_parquet(parquet)
    load("trivago", tmp_path / "t")
    parquet.write_bytes(parquet.read_bytes()[:-100])
    with pytest.raises(KarmafunnelError, match="trivago_val_100k"):
        load("trivago", tmp_path / "t")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (None, None),
        ("", None),
        ("<br>", None),
        ("a &amp; b", "a & b"),
        ("x<br/>y", "x y"),
        ("<!-- {css} --> z", "z"),
        ("open <!-- css", "open"),
        ("2 < 3 and 4 > 1", "2 < 3 and 4 > 1"),
        ("&lt;p&gt;hi&lt;/p&gt;", "hi"),
        ("cut <br", "cut"),
        ("(<2W). 7", "(<2W). 7"),
        ("<style>p {a: b}</style>Text", "Text"),
        ("  much \n\t space ", "much space"),
    ],
)
def test_plain_text(text, clean):
    assert _raw.plain(text) == clean


# -- values that no later command would take -------------------------------------------------------

ODD = (
    "nan",
    "inf",
    "-inf",
    "-1",
    "1e400",
    "3000000000",
    "1541600000000",
    "1541600000000000",
    "",
    "\x00",
    "0",
    "9" * 30,
    "0.6",
    "null",
    b"caf\xe9",
)
DELIMITED = [
    (source, name)
    for source in FILES
    for name in FILES[source]
    if "json" not in name and not name.endswith((".dat", ".feather", ".parquet"))
]
# What each column must be refused for, among others, with its row: (source, column) -> values.
NEVER_TAKEN = {
    ("trivago", "timestamp"): (
        "0",
        "1541600000000",
        "1541600000000000",
        "3000000000000",
        "-1",
        "nan",
        "",
        "0.6",
    ),
    ("trivago", "prices"): (
        "80|nan|70",
        "80|inf|70",
        "80|-1|70",
        "80|1e400|70",
        "80||70",
        "80|x|70",
        "80|95",
    ),
    ("online_retail", "Quantity"): ("3000000000", "nan", "0.6", ""),
    ("online_retail", "UnitPrice"): ("nan", "inf", "-inf", "1e400", ""),
    ("online_retail", "InvoiceDate"): ("1541600000", "nan", "2010-13-01 08:00:00"),
    ("eshop_clothing", "price"): ("nan", "inf", "-1", "1e400"),
    ("eshop_clothing", "year"): ("3000000000", "20080", "0", "1541600000000"),
    ("eshop_clothing", "day"): ("31", "0", "32"),
    ("amazon_office", "history_item_id"): (
        "[1, null]",
        "[0.5]",
        "[12]",
        "nan",
        "[" + "9" * 30 + "]",
        "{}",
        "[true]",
        "[" * 9999,
    ),
    ("amazon_office", "item_id"): ("12", "nan", "0.6", "1e400"),
    ("amazon_games", "item_id_list:token_seq"): ("0  1", "99", "nan"),
    ("amazon_games", "item_id:token"): ("x", "99", ""),
}


def cells(source: str, name: str) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and separator of a delimited file."""
    separator = "\t" if ".csv" not in name else ","
    lines = FILES[source][name]
    parts = (
        list(csv.reader(lines)) if separator == "," else [line.split(separator) for line in lines]
    )
    return parts[0], parts[1:], separator


def with_cell(
    source: str, name: str, column: str, value: str | bytes, folder: Path
) -> tuple[Path, int]:
    """The files of a source, one cell of one of them another; and the row of it."""
    header, rows, separator = cells(source, name)
    at = header.index(column)
    row = next((i for i, line in enumerate(rows) if line[at]), 0)
    rows[row][at] = "ODD" if isinstance(value, bytes) else value
    text = StringIO()
    if separator == ",":
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
    else:
        text.write("".join(separator.join(line) + "\n" for line in [header, *rows]))
    lay(folder, FILES[source])
    content = text.getvalue().encode()
    (folder / name).write_bytes(
        content.replace(b"ODD", value) if isinstance(value, bytes) else content
    )
    return folder, row + 1


@pytest.mark.parametrize(("source", "name"), DELIMITED, ids=[name for _, name in DELIMITED])
def test_no_value_in_any_column_makes_a_log_that_later_commands_refuse(source, name, tmp_path):
    for column in cells(source, name)[0]:
        for value in ODD:
            raw, _ = with_cell(source, name, column, value, tmp_path / "raw")
            try:
                loaded = load(source, raw)
            except KarmafunnelError as error:
                assert re.search(rf"{raw}/[^:]+[:,] row \d+: ", str(error)) and "\n" not in str(
                    error
                ), (column, value)
            else:
                assert not isinstance(value, bytes), column
                require(loaded)
                if value == "0":
                    loaded.write(tmp_path / f"log {column}", force=True)
                    failed = [
                        check.name
                        for check in validate(tmp_path / f"log {column}")
                        if check.status == "FAIL"
                    ]
                    assert set(failed) <= {"text", "query"}


@pytest.mark.parametrize(
    ("source", "column"), NEVER_TAKEN, ids=[f"{s} {c}" for s, c in NEVER_TAKEN]
)
def test_bad_values_are_refused_by_file_row_and_column(source, column, tmp_path):
    for name in FILES[source]:
        if "json" in name or name == "Games-6k.item" or column not in cells(source, name)[0]:
            continue
        for number, value in enumerate(NEVER_TAKEN[source, column]):
            raw, row = with_cell(source, name, column, value, tmp_path / f"{name}{number}")
            with pytest.raises(KarmafunnelError) as error:
                convert(source, raw, tmp_path / "log")
            assert f"{raw / name}: row {row}: " in str(error.value) and (
                column in str(error.value) or "item" in column
            ), value
            assert not (tmp_path / "log").exists()


def test_latin_1_is_refused_with_the_place_and_what_to_do(tmp_path):
    raw, row = with_cell(
        "online_retail", "online_retail.csv", "Description", b"caf\xe9", tmp_path / "raw"
    )
    with pytest.raises(
        KarmafunnelError,
        match=rf"online_retail\.csv: row {row}: column 'Description' needs text in UTF-8 \(iconv ",
    ):
        convert("online_retail", raw, tmp_path / "log")
    (raw / "online_retail.csv").write_bytes(
        "\n".join(RETAIL).replace("RED  LAMP", "CAFÉ \ufffd LAMP").encode()
    )
    # the sign itself is a sign
    assert "CAFÉ \ufffd LAMP" in load("online_retail", raw).items["title"].to_list()


def test_units_that_add_up_to_too_many_are_refused(tmp_path):
    lines = [RETAIL[0], *["1,10001,LAMP,2147483647,2010-12-01 08:00:00,3.0,77,France"] * 2]
    with pytest.raises(
        KarmafunnelError,
        match=(
            r"row 1: column 'Quantity' needs at most 2,147,483,647 units in an invoice, found "
            r"4,294"
        ),
    ):
        made(tmp_path, "online_retail", **{"online_retail.csv": lines})


TWICE = {
    "amazon_games": {"Games-6k.item": [*GAMES_ITEM, GAMES_ITEM[3]]},
    "amazon_office": {"Office_Products.item.json": [json.dumps(OFFICE_ITEMS)[:-1] + ', "3": {}}']},
    "amazon_catalog": {"catalog.jsonl": [*CATALOG, CATALOG[0]]},
    "trivago": {"item_metadata.csv": ["item_id,properties", "12,Pool", "13,Bar", "12,Bar"]},
    "eshop_clothing": {"e-shop_clothing_2008.csv": [*ESHOP, ESHOP[1]]},
} | raw_files.TWICE


@pytest.mark.parametrize("source", TWICE)
def test_an_item_twice_is_refused(source, tmp_path):
    (name,) = TWICE[source]
    raw = lay(tmp_path / "raw", FILES[source] | TWICE[source])
    with pytest.raises(KarmafunnelError, match=rf"{name}: .*(once|one click|twice)"):
        convert(source, raw, tmp_path / "log")
    assert not (tmp_path / "log").exists()
    # lines of one item in one invoice are added up; elsewhere an item has a row each time
    modules = {source for source in FILES if describe(source).map_file is None}
    assert modules - set(TWICE) == {"online_retail", "retailrocket", "recflow", "taobao_mm"}


ODD_JSON = (
    "NaN",
    "Infinity",
    "1e400",
    '"' + "9" * 400 + '"',
    "[[1]]",
    "true",
    "-5",
    '{"a": 1}',
    '"caf\xe9"',
    "[" * 5000,
    str(10**30),
)


@pytest.mark.parametrize(
    ("source", "name"),
    [("amazon_catalog", "catalog.jsonl"), ("amazon_office", "Office_Products.item.json")],
)
def test_no_value_in_json_makes_a_log_that_later_commands_refuse(source, name, tmp_path):
    keys = PRODUCT if source == "amazon_catalog" else OFFICE_ITEMS["0"]
    for key, value in ((key, value) for key in keys for value in ODD_JSON):
        raw = lay(tmp_path / "raw", FILES[source])
        if source == "amazon_catalog":
            line = json.dumps(PRODUCT | {key: "ODD"}).replace('"ODD"', value)
            text = "\n".join([CATALOG[1], line, CATALOG[2]])
        else:
            text = json.dumps(OFFICE_ITEMS | {"0": OFFICE_ITEMS["0"] | {key: "ODD"}}).replace(
                '"ODD"', value
            )
        (raw / name).write_bytes(text.encode("latin-1"))
        try:
            loaded = load(source, raw)
        except KarmafunnelError as error:
            place = "line 2: " if source == "amazon_catalog" else ""
            assert f"{raw / name}: {place}" in str(error), (key, value, str(error))
        else:
            require(loaded)
            assert "\xe9" not in value, key
            assert not loaded.items.select(
                pl.col("price").is_infinite().any() | pl.col("price").is_nan().any()
            ).item()


def test_a_log_that_would_be_refused_is_not_written(tmp_path, monkeypatch):
    """Whatever a converter makes of its files, the checks of the commands after it come first."""
    module = importlib.import_module("karmafunnel.simulator.datasets.trivago")
    raw = lay(tmp_path / "raw", FILES["trivago"])
    sound = module.load(raw)
    odd = Log.make(
        sound.items,
        sound.requests,
        sound.exposures.with_columns(pl.col("position") - 1),
        sound.meta,
    )
    monkeypatch.setattr(module, "load", lambda root: odd)
    with pytest.raises(
        KarmafunnelError,
        match=(
            rf"^{raw}: log trivago fails the check 'positions': 2 lists whose positions are not "
            r"1 to n"
        ),
    ):
        convert("trivago", raw, tmp_path / "log")
    assert not (tmp_path / "log").exists()


# -- trivago ---------------------------------------------------------------------------------------


def test_trivago_by_hand(tmp_path):
    log = made(tmp_path, "trivago")
    shown = (
        rows(log)
        .filter(pl.col("source") == "search")
        .select("request_id", "item_id", "position", "clicked", "price_shown")
    )
    assert shown.rows() == [
        ("s1-3", "11", 1, False, 80.0),
        ("s1-3", "12", 2, True, 95.0),
        ("s1-3", "13", 3, False, 70.0),
        ("s2-3", "11", 1, True, 81.0),
        ("s2-3", "21", 2, False, 51.0),
    ]
    events = (
        rows(log)
        .filter(pl.col("source") != "search")
        .select("request_id", "source", "item_id", "position", "clicked")
    )
    assert events.rows() == [
        ("s2-1", "clickout item", "99", None, True),
        ("s1-2", "interaction item image", "11", None, True),
        ("s2-2", "search for item", "21", None, True),
        ("s3-2", "clickout item", "22", None, True),
    ]
    first = log.requests.filter(pl.col("request_id") == "s1-3").row(0, named=True)
    assert first["query"] == "Rome, Italy, 4 Star, Sort by Price"
    assert first["filters"] == ["city=Rome, Italy"]
    assert first["context"] == [
        "city=Rome, Italy",
        "platform=IT",
        "device=mobile",
        "filter=4 Star",
        "filter=Sort by Price",
    ]
    queries = dict(log.requests.select("request_id", "query").rows())
    assert queries["s1-1"] == "Rome, Italy" and queries["s1-2"] is None
    assert queries["s2-1/2"] == "4 Star"  # a step that restarts keeps an id of its own
    assert dict(log.items.select("item_id", "attributes").rows()) == {
        "11": ["city=Rome, Italy", "city=Ulm, Germany"],
        "12": ["city=Rome, Italy"],
        "13": ["city=Rome, Italy"],
        "21": ["city=Ulm, Germany"],
        "22": ["city=Ulm, Germany"],
        "99": ["city=Ulm, Germany"],
    }
    assert log.meta["set_aside"] == {
        "click-outs whose hotel is withheld": 1,
        "places of a hotel that stands twice in one list": 0,
        "click-outs without a list (kept as history)": 1,
        "click-outs whose hotel is not in the list shown (kept as history)": 1,
        "item events that name no hotel (kept without exposure)": 1,
    }
    assert list(log.meta["notes"].values()) == [1]  # hotel 11, seen in Rome before, clicked in Ulm
    assert log.requests["ts"].is_sorted() and log.requests.height == len(TRIVAGO) - 1 - 1
    assert log.truth("click").sort("request")["money"].to_list()[1:3] == [None, 95.0]


def test_trivago_hotel_twice_in_a_list_and_prices_that_do_not_fit(tmp_path):
    line = 'u1,s1,1541600000,1,clickout item,11,IT,"Rome, Italy",mobile,,11|12|11,80|95|70'
    log = made(tmp_path / "a", "trivago", **{"train.csv": [TRIVAGO[0], line]})
    assert log.exposures.select("item_id", "position", "clicked").rows() == [
        ("11", 1, True),
        ("12", 2, False),
    ]
    assert log.meta["set_aside"]["places of a hotel that stands twice in one list"] == 1
    for prices, found in (("80|95", "found 2"), ("80|x|70", "found 'x'"), ("", "found 0")):
        with pytest.raises(KarmafunnelError, match=f"s1-1.*prices.*{found}"):
            made(
                tmp_path / "b",
                "trivago",
                **{"train.csv": [TRIVAGO[0], line.replace("80|95|70", prices)]},
            )


def test_trivago_takes_properties_where_the_challenge_file_lies(tmp_path):
    folder = lay(
        tmp_path,
        FILES["trivago"]
        | {"item_metadata.csv": ["item_id,properties", "12,Pool|4 Star", "77,Bar"]},
    )
    attributes = dict(load("trivago", folder).items.select("item_id", "attributes").rows())
    assert attributes["12"] == [
        "city=Rome, Italy",
        "property=Pool",
        "property=4 Star",
    ] and attributes["13"] == ["city=Rome, Italy"]


ACTIONS = (
    "clickout item",
    "interaction item image",
    "search for item",
    "search for poi",
    "filter selection",
)
EVENT = st.fixed_dictionaries(
    {
        "user": st.integers(0, 3),
        "gap": st.integers(0, 30),
        "action": st.sampled_from(ACTIONS),
        "city": st.sampled_from(("Rome", "Ulm, D")),
        "shown": st.lists(
            st.tuples(st.integers(1, 12), st.integers(0, 500)),
            max_size=6,
            unique_by=lambda place: place[0],
        ),
        "item": st.integers(1, 12),
    }
)


@settings(max_examples=40, deadline=None)
@given(st.lists(EVENT, max_size=25))
def test_trivago_keeps_every_event_list_and_price(events):
    sure = {
        "user": 9,
        "gap": 0,
        "action": "clickout item",
        "city": "Rome",
        "shown": [(1, 5)],
        "item": 1,
    }
    table, now = defaultdict(list), 1541600000
    for step, event in enumerate([sure, *events]):
        now += event["gap"]
        listed = event["action"] == "clickout item" and event["shown"]
        values = {
            "user_id": f"u{event['user']}",
            "session_id": f"s{event['user']}",
            "timestamp": now,
            "step": step,
            "action_type": event["action"],
            "reference": str(event["item"]),
            "platform": "DE",
            "city": event["city"],
            "device": "mobile",
            "current_filters": None,
            "impressions": "|".join(str(i) for i, _ in event["shown"]) if listed else None,
            "prices": "|".join(str(p) for _, p in event["shown"]) if listed else None,
        }
        for name, value in values.items():
            table[name].append(value)
    with tempfile.TemporaryDirectory() as folder:
        text = dict.fromkeys(("current_filters", "impressions", "prices"), pl.String)
        pl.DataFrame(table, schema_overrides=text).write_parquet(
            Path(folder) / "trivago_val_100k.parquet"
        )
        log = load("trivago", folder)
    served = [
        e
        for e in [sure, *events]
        if e["action"] == "clickout item" and e["item"] in {i for i, _ in e["shown"]}
    ]
    listed = log.exposures.filter(pl.col("position").is_not_null())
    assert log.requests.height == len(events) + 1 and len(log.requests_in("W1", "W2", "W3")) == len(
        served
    )
    assert listed["price_shown"].sum() == sum(price for e in served for _, price in e["shown"])
    truth = log.truth("click").filter(pl.col("request").is_in(log.requests_in("W1", "W2", "W3")))
    assert truth.height == len(served) and truth["money"].sum() == sum(
        dict(e["shown"])[e["item"]] for e in served
    )
    by_request = listed.group_by("request_id").agg(
        pl.col("position").sort(), pl.col("clicked").sum()
    )
    assert (
        all(p.to_list() == list(range(1, len(p) + 1)) for p in by_request["position"])
        and (by_request["clicked"] == 1).all()
    )
    others = [e for e in [sure, *events] if e not in served and e["action"] in ACTIONS[:3]]
    assert log.exposures.filter(pl.col("position").is_null()).height == len(others)
    held = log.items.explode("attributes").select("item_id", "attributes")
    wanted = (
        rows(log)
        .filter(pl.col("source") == "search")
        .select("item_id", pl.col("filters").list.first().alias("attributes"))
    )
    assert wanted.join(held, on=["item_id", "attributes"], how="anti").height == 0


# -- online retail ---------------------------------------------------------------------------------


def test_online_retail_by_hand(tmp_path):
    log = made(tmp_path, "online_retail")
    lines = rows(log).select(
        "request_id",
        "user_id",
        "item_id",
        "quantity",
        "returned",
        "price_paid",
        "purchased",
        "clicked",
    )
    assert lines.rows() == [
        ("1", "77", "10001", 3, 1, 2.5, True, None),
        ("4", "88", "10002A", 7, 0, 1.5, True, None),
    ]
    assert log.requests["context"].to_list() == [["country=France"], ["country=Spain"]]
    assert str(log.requests["ts"][0]) == "2010-12-01 08:00:00+00:00"
    assert dict(log.items.select("item_id", "title").rows()) == {
        "10001": "RED LAMP",
        "10002A": "MUG",
    }
    assert log.items["price"].null_count() == 2
    assert log.meta["set_aside"] == {
        "lines, no customer": 2,
        "lines, no product": 2,
        "lines, no price or quantity": 1,
        "units returned without an earlier purchase": 10,
        "lines of invoices netted out to zero": 2,
        "invoices netted out to zero": 1,
    }
    assert log.meta["notes"] == {
        "lines, sales": 5,
        "lines, returns": 4,
        "sale lines added to another of the same item and invoice": 1,
        "units returned and netted out": 7,
        "money, sales": 42.0,
        "money, returned and netted out": 24.0,
    }
    assert log.truth("purchase")["money"].to_list() == [7.5, 10.5]


def test_online_retail_reads_the_other_date_format_and_names_bad_cells(tmp_path):
    other = [line.replace("2010-12-01 08:00:00", "12/1/2010 8:00") for line in RETAIL]
    assert (
        made(tmp_path / "a", "online_retail", **{"online_retail.csv": other}).requests["ts"][0].hour
        == 8
    )
    for old, new, match in (
        ("2010-12-01 08:01:00", "soon", "row 3.*InvoiceDate.*'soon'"),
        (",2,2010-12-01 08:01", ",two,2010-12-01 08:01", "row 3.*Quantity.*'two'"),
        (",2.0,77.0", ",x,77.0", "row 3.*UnitPrice.*'x'"),
        (
            ",2.0,77.0",
            ",2.0,78.0",
            "row 3: column 'CustomerID' needs one customer an invoice, such as '77' on '1', "
            "found '78'",
        ),
    ):
        with pytest.raises(KarmafunnelError, match=match):
            made(
                tmp_path / "b",
                "online_retail",
                **{"online_retail.csv": [line.replace(old, new) for line in RETAIL]},
            )


LINE = st.fixed_dictionaries(
    {
        "customer": st.sampled_from(("", "1", "2")),
        "code": st.sampled_from(("10001", "10002", "POST")),
        "quantity": st.integers(-6, 6),
        "pence": st.integers(0, 400),
        "minute": st.integers(0, 20),
    }
)


@settings(max_examples=40, deadline=None)
@given(st.lists(LINE, max_size=30))
def test_online_retail_conserves_money_and_units(lines):
    sure = {"customer": "9", "code": "10001", "quantity": 1, "pence": 100, "minute": 0}
    text = [RETAIL[0]]
    # (customer, code) -> one entry a unit still owned: (minute, invoice, pence)
    units = defaultdict(list)
    sold = returned = unmatched = 0
    for line in sorted([sure, *lines], key=lambda line: (line["minute"], line["quantity"] < 0)):
        back = line["quantity"] < 0
        line["invoice"] = f"{'C' if back else ''}{line['minute']}{line['customer'] or 'x'}"
        text.append(
            f"{line['invoice']},{line['code']},THING,{line['quantity']},2011-01-01 "
            f"00:{line['minute']:02}:00,"
            f"{line['pence'] / 100},{line['customer']},UK"
        )
        if not line["customer"] or line["code"] == "POST" or line["pence"] == 0:
            continue
        owned = units[line["customer"], line["code"]]
        if back:
            gone = min(-line["quantity"], len(owned))
            del owned[len(owned) - gone :]
            returned, unmatched = returned + gone, unmatched - line["quantity"] - gone
        else:
            sold += line["quantity"] * line["pence"]
            owned += [(line["invoice"], line["code"])] * line["quantity"]
    with tempfile.TemporaryDirectory() as folder:
        log = load("online_retail", lay(Path(folder), {"online_retail.csv": text}))
    aside = log.meta["set_aside"] | log.meta["notes"]
    kept = defaultdict(int)
    for owned in units.values():
        for unit in owned:
            kept[unit] += 1
    assert {
        (r, i): q for r, i, q in log.exposures.select("request_id", "item_id", "quantity").rows()
    } == dict(kept)
    assert (
        aside["units returned and netted out"] == returned
        and aside["units returned without an earlier purchase"] == unmatched
    )
    assert aside["money, sales"] == pytest.approx(sold / 100)
    money = log.truth("purchase")["money"].sum()
    assert money == pytest.approx(
        aside["money, sales"] - aside["money, returned and netted out"], abs=0.02
    )
    reasons = [
        "lines, no customer",
        "lines, no product",
        "lines, no price or quantity",
        "lines, sales",
        "lines, returns",
    ]
    assert sum(aside[reason] for reason in reasons) == len(text) - 1
    assert (log.exposures["quantity"] >= 1).all() and (log.exposures["price_paid"] > 0).all()


# -- sequences -------------------------------------------------------------------------------------


def test_amazon_office_by_hand(tmp_path):
    log = made(tmp_path, "amazon_office")
    story = rows(log).select("user_id", "item_id", "window", "source").rows()
    assert story == [
        # first events of A, D, B (the order of their hashes), C, then second ones; B buys 4 again
        # as a test target: 4 and what follows leave W1
        ("A", "0", "W1", "review"),
        ("D", "1", "W1", "review"),
        ("B", "3", "W1", "review"),
        ("C", "7", "W1", "review"),
        ("A", "1", "W1", "review"),
        ("C", "8", "W1", "review"),
        ("B", "4", "W2a", "earlier review"),
        ("B", "5", "W2a", "earlier review"),
        ("A", "2", "W2a", "review"),
        ("A", "3", "W2a", "review"),
        ("D", "0", "W2a", "review"),
        ("B", "6", "W2b", "review"),
        ("B", "4", "W3", "review"),
        ("A", "5", "W3", "review"),
        ("C", "0", "W3", "review"),
    ]
    assert list(log.meta["notes"].values()) == [6, 1, 2, 7, 0]
    history = log.asof.history(log.requests_in("W3"), 10).items
    assert [[int(log.item_ids[i]) for i in row if i >= 0] for row in history] == [
        [3, 4, 5, 6],
        [0, 1, 2, 3],
        [7, 8],
    ]
    items = {item["item_id"]: item for item in log.items.rows(named=True)}
    assert items["0"]["title"] == "Pen & Ink 0"
    assert items["0"]["brand"] == "Bic"
    assert items["0"]["category"] is None
    assert (
        items["0"]["description"] == "Blue ink . Dries <1 s" and items["2"]["description"] is None
    )
    assert items["1"]["description"].startswith('a 1" pen')
    assert items["4"]["semantic_id"] == "<a_4><b_0>"
    assert log.requests["ts"].null_count() == log.requests.height


def test_rows_that_do_not_chain_are_counted_and_unknown_items_refused(tmp_path):
    odd = [OFFICE, office_row("A", [0, 8, 2, 3], 5)]  # not what A's validation rows say
    log = made(tmp_path / "a", "amazon_office", **{"Office_Products.test.csv": odd})
    assert list(log.meta["notes"].values())[-1] == 1
    with pytest.raises(
        KarmafunnelError, match=r"test\.csv: row 1: needs items that .*item\.json holds, found '12'"
    ):
        made(
            tmp_path / "b",
            "amazon_office",
            **{"Office_Products.test.csv": [OFFICE, office_row("A", [0], 12)]},
        )


def test_amazon_games_by_hand(tmp_path):
    log = made(tmp_path, "amazon_games")
    assert log.items["title"][3] == 'Game "3" & more'
    assert log.requests["window"].to_list() == ["W1"] * 7 + ["W2a"] * 3 + ["W2b"] + ["W3"] * 4
    # users in the order of their hashes: 2, 0, 3, 1; test rows as published
    assert rows(log)["item_id"].to_list() == list("1004") + list("15") + ["2"] + list(
        "2346"
    ) + list("7805")


# -- catalogue and clicks --------------------------------------------------------------------------


def test_amazon_catalog_by_hand(tmp_path):
    catalogue = load("amazon_catalog", lay(tmp_path, FILES["amazon_catalog"]))
    assert isinstance(catalogue, Catalogue)
    first, second, third = catalogue.items.rows(named=True)
    assert first["title"] == "Café Mug"
    assert first["brand"] == "Lavo"
    assert first["category"] == ["Home", "Kitchen", "Mugs"]
    assert first["features"] == "big\nblue" and first["description"] == "One.\nTwo."
    assert first["attributes"] == ["Color=Blue", "Ranks/Home=3", "Audio=en", "Audio=de"]
    assert [item["price"] for item in (first, second, third)] == [5.99, None, 1299.5]
    assert first["price_text"] == "from 5.99"
    assert first["average_rating"] == 4.5
    assert first["rating_number"] == 7
    assert first["image_url"] == "https://i/1" and first["image_urls"] == [
        "https://i/1",
        "https://i/2h",
    ]
    assert first["video_urls"] == ["https://v/1"] and first["image"] is None
    assert second["category"] == ["Amazon Home"]
    assert second["brand"] is None
    assert second["image_url"] is None
    assert third["title"] is None and third["video_urls"] == []
    for broken, match in (
        ({"parent_asin": "A1"}, "line 2.*missing"),
        (PRODUCT, "'A1' twice"),
        (PRODUCT | {"price": "-3"}, "below zero"),
    ):
        with pytest.raises(KarmafunnelError, match=match):
            load(
                "amazon_catalog", lay(tmp_path, {"catalog.jsonl": [CATALOG[0], json.dumps(broken)]})
            )


@pytest.mark.parametrize("semicolons", [False, True])
def test_eshop_clothing_by_hand(semicolons, tmp_path):
    lines = ESHOP
    if semicolons:  # as UCI packs it
        header = (
            "year;month;day;order;country;session ID;page 1 (main category);page 2 (clothing model)"
        )
        lines = [
            f"{header};colour;location;model photography;price;price 2;page",
            *[line.replace(",", ";") for line in ESHOP[1:]],
        ]
    log = made(tmp_path, "eshop_clothing", **{"e-shop_clothing_2008.csv": lines})
    clicks = rows(log).select(
        "request_id",
        "user_id",
        "item_id",
        "price_shown",
        pl.col("ts").dt.strftime("%d %T"),
        "window",
    )
    assert clicks.rows() == [
        ("1-1", "1", "A5", 28.0, "01 00:00:01", "W1"),
        ("2-1", "2", "A5", 28.0, "01 00:00:01", "W1"),
        ("1-2", "1", "B7", 52.0, "01 00:00:02", "W1"),
        ("3-1", "3", "B7", 52.0, "02 00:00:01", "W2b"),  # whole days: one for W2, all of it W2b
        ("4-1", "4", "A5", 28.0, "03 00:00:01", "W3"),
    ]
    assert log.exposures["clicked"].all() and log.exposures["position"].null_count() == 5
    assert log.requests["context"].to_list()[:2] == [["country=Poland"], ["country=Czech Republic"]]
    blouse = log.items.filter(pl.col("item_id") == "B7").row(0, named=True)
    # the category of its first click
    assert blouse["category"] == ["skirts"] and blouse["price"] == 52.0
    assert blouse["attributes"] == [
        "colour=olive",
        "location=top in the middle",
        "photography=profile",
        "page=3",
        "above the category's mean price=yes",
    ]
    with pytest.raises(
        KarmafunnelError,
        match=r"row 1: column 'country' needs a whole number from 1 to 47, found '48'",
    ):
        made(
            tmp_path,
            "eshop_clothing",
            **{"e-shop_clothing_2008.csv": [line.replace("1,1,29", "1,1,48") for line in ESHOP]},
        )


# -- the real files --------------------------------------------------------------------------------


@cache
def real(source: str, root: Path) -> Log:
    loaded = load(source, root)
    assert isinstance(loaded, Log | Catalogue)
    return loaded  # type: ignore[return-value]


def test_real_trivago(data_root):
    root = data_root("trivago")
    log = real("trivago", root)
    raw = pl.read_parquet(root / "trivago_val_100k.parquet")
    outs = raw.filter(pl.col("action_type") == "clickout item")
    inside = [set(i.split("|")) >= {r} for i, r in outs.select("impressions", "reference").rows()]
    assert log.requests.height == raw.height == 100_003 and outs.height == 13_597
    assert len(log.requests_in("W1", "W2", "W3")) == sum(inside) == 13_596
    listed = log.exposures.filter(pl.col("position").is_not_null())
    kept = outs.filter(pl.Series(inside))
    assert listed.height == sum(i.count("|") + 1 for i in kept["impressions"])
    assert listed["price_shown"].sum() == sum(
        int(p) for prices in kept["prices"] for p in prices.split("|")
    )
    assert len({i for text in outs["impressions"] for i in text.split("|")}) == 106_866
    assert log.items.height > 106_800
    per_list = listed.group_by("request_id").agg(
        pl.len(),
        pl.col("position").min().alias("low"),
        pl.col("position").max().alias("high"),
        "clicked",
    )
    assert (per_list["low"] == 1).all()
    assert (per_list["high"] == per_list["len"]).all()
    assert per_list["len"].max() == 25
    assert (per_list["clicked"].list.sum() == 1).all()
    share = [
        log.requests_in(w).size / len(log.requests_in("W1", "W2", "W3")) for w in ("W1", "W2", "W3")
    ]
    assert share == pytest.approx([0.6, 0.2, 0.2], abs=0.001)
    served = log.requests_in("W3")
    truth = log.truth("click").filter(pl.col("request").is_in(served))
    holders = log.asof.is_eligible(truth["request"].to_numpy(), truth["item"].to_numpy())
    known = (
        log.asof.known_rank[truth["item"].to_numpy()] < log.asof.rank[truth["request"].to_numpy()]
    )
    # the city never shuts out what was clicked
    assert (holders == known).all() and holders.mean() > 0.8


def test_real_online_retail(data_root):
    root = data_root("online_retail")
    log = real("online_retail", root)
    other = {"22016", "23444", "23574", "23702"}
    ts, stacks, lines = {}, defaultdict(list), 0
    bought, money = defaultdict(int), 0.0
    raw = pl.read_csv(root / "online_retail.csv.gz", infer_schema=False).rows()
    for invoice, _, _, _, date, *_ in raw:
        ts[invoice] = min(date, ts.get(invoice, "9"))
    good = [
        (ts[invoice], int(quantity) < 0, customer[:-2], code, invoice, int(quantity), float(price))
        for invoice, code, _, quantity, _, price, customer, _ in raw
        if customer
        and float(price) > 0
        and (code[:5].isdigit() or code == "PADS")
        and code not in other
    ]
    for _, _, customer, code, invoice, quantity, price in sorted(good, key=lambda line: line[:2]):
        stack = stacks[customer, code]
        if quantity > 0:
            lines += 1
            money += quantity * price
            bought[invoice, code] += quantity
            if stack and stack[-1][0] == invoice:
                stack[-1][1] += quantity
            else:
                stack.append([invoice, quantity])
        while quantity < 0 and stack:
            taken = min(-quantity, stack[-1][1])
            bought[stack[-1][0], code] -= taken
            stack[-1][1] -= taken
            quantity += taken
            if not stack[-1][1]:
                stack.pop()
    net = {key: quantity for key, quantity in bought.items() if quantity}
    found = {
        (r, i): q for r, i, q in log.exposures.select("request_id", "item_id", "quantity").rows()
    }
    assert found == net
    aside = log.meta["set_aside"] | log.meta["notes"]
    assert aside["lines, sales"] == lines and aside["money, sales"] == pytest.approx(
        money, abs=0.01
    )
    kept = (log.exposures["price_paid"] * log.exposures["quantity"]).sum()
    assert kept == pytest.approx(money - aside["money, returned and netted out"], abs=0.01)
    assert sum(aside[k] for k in aside if k.startswith("lines, ")) == len(raw) == 541_909
    assert aside["lines, no customer"] == 135_080
    assert log.requests["user_id"].n_unique() < 4372 and log.items.height < 4070
    assert log.items["title"].null_count() == 0
    assert (
        not log.items["title"]
        .str.contains(r"(?i)^(\?|damage|check|found|.*postage|manual|discount|.*voucher)")
        .any()
    )
    descriptions = {(line[1].upper(), " ".join((line[2] or "").split())) for line in raw}
    assert set(log.items.select("item_id", "title").rows()) <= descriptions


def expected_histories(log: Log, published: list[list[str]]) -> np.ndarray:
    number = {item: row for row, item in enumerate(log.item_ids)}
    longest = max(map(len, published))
    answer = np.full((len(published), longest), -1, dtype=np.int32)
    for row, history in enumerate(published):
        answer[row, longest - len(history) :] = [number[item] for item in history]
    return answer


@pytest.mark.parametrize("source", ["amazon_office", "amazon_games"])
def test_real_sequences_give_the_publishers_histories_and_leak_no_target(source, data_root):
    root = data_root(source)
    log = real(source, root)
    published: dict[str, list[tuple[str, list[str], str]]] = {}
    for part in ("valid", "test"):
        if source == "amazon_office":
            with open(root / f"Office_Products.{part}.csv", encoding="utf-8", newline="") as file:
                found = [
                    (r["user_id"], r["history_item_id"].strip("[]").split(", "), r["item_id"])
                    for r in csv.DictReader(file)
                ]
        else:
            with gzip.open(root / f"Games-6k.{part}.inter.gz", "rt") as file:
                table = [line.rstrip("\n").split("\t") for line in file][1:]
            found = [(user, history.split(" "), item) for user, history, item in table]
        published[part] = found
    for part, windows in (("valid", ("W2",)), ("test", ("W3",))):
        served = log.requests_in(*windows)
        # the publisher's order
        served = served[np.argsort([int(i.split("-")[1]) for i in log.request_ids[served]])]
        given_rows = published[part]
        assert log.requests["user_id"][served].to_list() == [user for user, _, _ in given_rows]
        truth = log.truth("purchase").join(
            pl.DataFrame({"request": served}), on="request", how="right", maintain_order="right"
        )
        assert log.item_ids[truth["item"].to_numpy()].tolist() == [
            item for _, _, item in given_rows
        ]
        wanted = expected_histories(log, [history for _, history, _ in given_rows])
        got = log.asof.history(served, wanted.shape[1]).items
        padded = wanted == -1  # the publisher's history may be cut shorter than what is known
        assert (np.where(padded, -1, got) == wanted).all(axis=1).mean() == 1.0
        longer = (padded & (got != -1)).any(axis=1).mean()
        assert longer == 0.0
    assert len(log.requests_in("W2b")) == len(published["valid"]) // 4
    targets = {(user, item) for part in published.values() for user, _, item in part}
    early = rows(log).filter(pl.col("window") == "W1").select("user_id", "item_id").rows()
    assert not targets & set(early)
    order = log.requests["window"].replace_strict(
        {"W1": 0, "W2a": 1, "W2b": 2, "W3": 3}, return_dtype=pl.Int8
    )
    assert order.is_sorted()
    counts = {"amazon_office": (3459, 4866, 4866), "amazon_games": (16859, 50546, 50546)}[source]
    assert (log.n_items, len(log.requests_in("W2")), len(log.requests_in("W3"))) == counts


def test_real_amazon_office_texts(data_root):
    root = data_root("amazon_office")
    log = real("amazon_office", root)
    raw = json.loads((root / "Office_Products.item.json").read_text())
    assert log.item_ids.tolist() == list(raw)
    assert (
        log.items["title"].null_count() == 0 and log.items["category"].null_count() == log.n_items
    )
    assert log.items["description"].null_count() == sum(
        not about["description"].strip("[]', ") for about in raw.values()
    )
    text = log.items.select(
        pl.concat_str("title", pl.col("description").fill_null(""), separator=" ")
    ).to_series()
    assert not text.str.contains(r"&[a-z]+;|</?[a-z]+>|<!--|^\[['\"]").any()


def test_real_amazon_catalog(data_root):
    root = data_root("amazon_catalog")
    items = real("amazon_catalog", root).items
    with gzip.open(root / "catalog.jsonl.gz", "rt", encoding="utf-8") as file:
        raw = [json.loads(line) for line in file]
    assert (
        items["item_id"].to_list() == [about["parent_asin"] for about in raw] and len(raw) == 19_998
    )
    numbers = {
        a["parent_asin"]: float(a["price"]) for a in raw if a["price"].replace(".", "", 1).isdigit()
    }
    assert len(numbers) == 19_903
    priced = dict(items.filter(pl.col("price").is_not_null()).select("item_id", "price").rows())
    assert numbers.items() <= priced.items()
    assert set(priced) - set(numbers) == {
        a["parent_asin"] for a in raw if a["price"].startswith("from ")
    }
    assert items["price_text"].to_list() == [about["price"] for about in raw]
    assert items["title"].null_count() == 2 and items["average_rating"].null_count() == 0
    details = [json.loads(about["details"]) for about in raw]
    assert items["attributes"].list.len().sum() == sum(
        len(v) if isinstance(v, list | dict) else 1 for d in details for v in d.values()
    )
    assert items["attributes"].explode().drop_nulls().str.contains("=").all()


def test_real_eshop_clothing(data_root):
    root = data_root("eshop_clothing")
    log = real("eshop_clothing", root)
    with gzip.open(root / "e-shop_clothing_2008.csv.gz", "rt") as file:
        raw = list(csv.reader(file))[1:]
    assert (
        log.requests.height == len(raw) == 165_474
        and log.n_items == len({r[7] for r in raw}) == 217
    )
    assert log.requests["user_id"].n_unique() == len({r[5] for r in raw}) == 24_026
    assert log.exposures["price_shown"].sum() == sum(int(r[11]) for r in raw)
    inside = (
        log.requests.sort("user_id", "ts")
        .select(pl.col("ts").diff().over("user_id").alias("gap"))
        .drop_nulls()
    )
    assert (inside["gap"].dt.total_seconds() == 1).all()
    assert (
        log.exposures["item_id"].value_counts().sort("item_id").rows()
        == pl.Series("item_id", [r[7] for r in raw]).value_counts().sort("item_id").rows()
    )
    days = log.requests.group_by(pl.col("ts").dt.date()).agg(pl.col("window").n_unique())
    assert (days["window"] == 1).all()
    share = [log.requests_in(w).size / 165_474 for w in ("W1", "W2", "W3")]
    assert share == pytest.approx([0.6, 0.2, 0.2], abs=0.02)
    assert not log.requests["context"].explode().str.contains("page|colour|location|category").any()


# -- further sources -------------------------------------------------------------------------------


def test_retailrocket_transactions_sessions_and_categories(tmp_path):
    log = made(tmp_path, "retailrocket")
    assert log.requests["source"].to_list() == ["view", "addtocart", "transaction", "view", "view"]
    assert log.requests["request_id"][2] == "t500"
    assert log.requests["session_id"].to_list()[:3] == ["257597-0"] * 3
    bought = log.exposures.filter("purchased")
    assert bought["item_id"].to_list() == ["11", "12"] and not bought["clicked"].any()
    assert log.meta["set_aside"] == {"lines of an item that stands twice in a transaction": 1}
    assert log.items["category"].null_count() == 3 and "categories: files" in " ".join(log.meta["lacks"])
    more = {
        "item_properties_part1.csv": ROCKET_PART1,
        "item_properties_part2.csv": ROCKET_PART2,
        "category_tree.csv": ROCKET_TREE,
    }
    log = made(tmp_path, "retailrocket", **more)
    assert dict(log.items.select("item_id", "category").iter_rows()) == {
        "11": ["1", "3", "4"],
        "12": ["1", "3"],
        "13": None,
    }


def test_hm_days_units_and_prices(tmp_path):
    log = made(tmp_path, "hm")
    assert log.requests.height == 4 and log.requests["user_id"].to_list() == ["c1", "c1", "c2", "c2"]
    first = rows(log).filter(pl.col("item_id") == "0108775015").row(0, named=True)
    assert first["quantity"] == 2 and first["price_paid"] == pytest.approx(0.04)
    about = log.items.filter(pl.col("item_id") == "0108775015").row(0, named=True)
    assert about["title"] == "Strap top"
    assert about["category"] == ["Ladieswear", "Garment Upper body", "Vest top"]
    assert about["description"] == "Jersey top with narrow straps, soft."


def test_yoochoose_clicks_and_buys_in_their_order(tmp_path):
    log = made(tmp_path, "yoochoose")
    flat = rows(log).filter(pl.col("session_id") == "1")
    assert flat["item_id"].to_list() == ["214536502", "214536500", "214536502"]
    assert flat["purchased"].to_list() == [False, False, True]
    assert flat.row(2, named=True)["quantity"] == 2
    assert log.exposures["price_paid"].drop_nulls().to_list() == [1046.0]
    assert log.requests["ts"][0].isoformat() == "2014-04-07T10:51:09.277000+00:00"


def test_otto_events_of_sessions(tmp_path):
    log = made(tmp_path, "otto")
    flat = rows(log)
    assert flat["item_id"].to_list()[:3] == ["1517085", "1563459", "1563459"]
    assert flat["clicked"].to_list()[:3] == [True, True, False]
    assert flat["purchased"].to_list()[:3] == [False, False, True]
    assert log.requests.height == 6 and log.requests["user_id"].n_unique() == 3


@pytest.mark.parametrize("source", ["amazon_2018", "amazon_2023"])
def test_amazon_reviews_and_items(source, tmp_path):
    log = made(tmp_path, source)
    assert log.requests["user_id"].to_list() == ["A1", "A1", "A2", "A2"]
    assert log.exposures["purchased"].all() and log.meta["currency"] == "USD"
    items = {item["item_id"]: item for item in log.items.iter_rows(named=True)}
    assert items["B01"]["brand"] == "Lavo" and items["B02"]["price"] is None
    if source == "amazon_2018":
        assert items["B01"]["title"] == "Game & Co 1" and items["B01"]["price"] == 1012.5
        assert items["B01"]["category"] == ["Video Games", "PC"]
        assert items["B01"]["description"] == "One.\nTwo." and items["B03"]["price"] is None
        assert log.requests["ts"][0].isoformat().startswith("2015-10-17")
    else:
        assert items["B01"]["category"] == ["Video Games"] and items["B03"]["price"] == 3.0
        assert log.requests["ts"][0].isoformat() == "2015-10-17T00:00:00.123000+00:00"
    name, lines = next(iter(FILES[source].items()))
    lay(tmp_path / source, {name.replace("Video_Games", "Software"): lines})
    with pytest.raises(KarmafunnelError, match=r"needs one category, found .*Software"):
        load(source, tmp_path / source)


def test_amazon_catalog_reads_the_publishers_own_layout(tmp_path):
    folder = lay(tmp_path, {"meta_Video_Games.jsonl": META_2023})
    items = load("amazon_catalog", folder).items
    assert items["attributes"].to_list()[0] == ["Color=Blue"]
    assert items["image_urls"].to_list()[0] == ["https://i/1"]
    assert items["video_urls"].to_list()[0] == ["https://v/1"]
    assert items["price"].to_list() == [12.5, None, 3.0]


FILM = "|01-Jan-1995||http://x|" + "|".join("1" if i in (1, 5) else "0" for i in range(19))
EDITIONS = {
    "ml-1m": {
        "ratings.dat": ["1::31::5::978300760", "2::10::4::978300860", "2::31::3::978300960", "3::10::5::978301060"],
        "movies.dat": ["10::GoldenEye: caf\xe9 (1995)::Action|Comedy", "31::Dangerous Minds (1995)::Drama"],
    },
    "ml-100k": {
        "u.data": ["1\t31\t5\t978300760", "2\t10\t4\t978300860", "2\t31\t3\t978300960", "3\t10\t5\t978301060"],
        "u.item": [f"10|GoldenEye: caf\xe9 (1995){FILM}", f"31|Dangerous Minds (1995){FILM}"],
    },
}  # fmt: skip


@pytest.mark.parametrize("edition", EDITIONS)
def test_movielens_editions(edition, tmp_path):
    for name, lines in EDITIONS[edition].items():
        (tmp_path / name).write_bytes("\n".join([*lines, ""]).encode("latin-1"))
    log = load("movielens", tmp_path)
    assert log.requests["user_id"].to_list() == ["1", "2", "3"]
    assert log.exposures["item_id"].to_list() == ["31", "10", "10"]
    assert log.requests["ts"][0].isoformat() == "2000-12-31T22:12:40+00:00"
    first = log.items.row(0, named=True)
    assert first["title"] == "GoldenEye: caf\xe9 (1995)" and first["category"] == ["Action", "Comedy"]
    names = list(EDITIONS[edition])
    assert log.meta["source"] == f"ratings of films, {', '.join(names)}; {describe('movielens').home}"
    (tmp_path / names[1]).write_bytes(b"10::x\n")
    with pytest.raises(KarmafunnelError, match=rf"{names[1]}: row 1: needs a film"):
        load("movielens", tmp_path)


def test_names_that_the_publisher_does_not_use_are_in_the_source(tmp_path):
    raw = lay(tmp_path, {
        "ml-100k.inter": ["user_id:token\titem_id:token\trating:float\ttimestamp:float",
                          *(f"{n}\t31\t5\t{978300760 + n}" for n in range(9))],
        "ml-100k.item": ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq", "31\tX\t1995\tDrama"],
    })  # fmt: skip
    told = load("movielens", raw).meta["source"]
    assert told == f"ratings of films, ml-100k.inter, ml-100k.item; {describe('movielens').home}"


MAPPED = [source for source in FILES if describe(source).map_file]


@pytest.mark.parametrize("source", [*MAPPED, "retailrocket", "amazon_catalog"])
def test_convert_again_is_the_same_bytes_and_says_how_to_go_on(source, tmp_path):
    lay(tmp_path / "raw", FILES[source])
    command, written = ["convert", source, str(tmp_path / "raw"), str(tmp_path / "log")], []
    for _ in range(2):
        answer = CliRunner().invoke(main, command)
        assert answer.exit_code == 0, answer.output
        written.append({path.name: path.read_bytes() for path in (tmp_path / "log").iterdir()})
    assert written[0] == written[1]
    then = "world LOG --catalogue" if source == "amazon_catalog" else "replay baseline"
    assert f"next: karmafunnel describe {tmp_path / 'log'}; karmafunnel {then}" in answer.output
    assert "lacks: " not in answer.output


def test_a_few_bad_rows_are_kept_aside_under_the_publishers_name(tmp_path):
    lines = [RATINGS[0], *(f"{user},31,5.0,{1260759144 + user}" for user in range(1, 300))]
    raw = lay(tmp_path / "raw", {"ratings.csv": [*lines, "7,31,5.0,soon"], "movies.csv": MOVIES})
    for folder in (tmp_path / "one", tmp_path / "two"):
        convert("movielens", raw, folder)
    left = pl.read_parquet(tmp_path / "one" / "rejected.parquet").row(0, named=True)
    assert left["file"] == str(raw / "ratings.csv") and left["row"] == 300
    assert left["reason"] == "time cannot be read"
    for name in ("rejected.parquet", "items.parquet", "requests.parquet", "exposures.parquet", "log.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def grocery(folder: Path, **changed) -> Path:
    folder.mkdir(exist_ok=True)
    lines = {
        "household_id": [900, 900, 900, 1228, 1228, 7],
        "store_id": [330] * 6,
        "basket_id": [31198570044, 31198570044, 31198570044, 31198655051, 31198655052, 31198655053],
        "product_id": [1, 1, 2, 1, 9, 3],
        "quantity": [1, 3, 0, 2, 8000, 1],
        "sales_value": [1.0, 2.0, 0.0, 2.5, 20.0, 4.0],
        "retail_disc": [0.0, 1.0, 0.0, 0.5, 0.0, 0.0],
        "coupon_disc": [0.0] * 6,
        "coupon_match_disc": [0.0] * 6,
        "week": [1] * 6,
        "transaction_timestamp": pl.datetime_range(
            pl.datetime(2017, 1, 1), pl.datetime(2017, 1, 6), "1d", eager=True
        ),
    } | changed
    at = pl.Series(lines["transaction_timestamp"])
    lines["transaction_timestamp"] = pl.concat([at[:1], at[:1], at[:1], at[3:]])  # one time a basket
    pl.DataFrame(lines).write_parquet(folder / "transactions.parquet")
    pl.DataFrame(
        {
            "product_id": [1, 2, 9],
            "manufacturer_id": [2, 2, 2],
            "department": ["GROCERY", "PRODUCE", "FUEL"],
            "brand": ["National", "Private", "National"],
            "product_category": ["FRZN ICE", None, "COUPON/MISC ITEMS"],
            "product_type": ["ICE - CRUSHED/CUBED", None, "GASOLINE"],
            "package_size": ["22 LB", None, None],
        }
    ).write_parquet(folder / "products.parquet")
    return folder


def test_complete_journey_baskets_prices_and_what_is_set_aside(tmp_path):
    log = load("complete_journey", grocery(tmp_path))
    assert {name for name, there in log.meta["has"].items() if there} == set(describe("complete_journey").holds)
    assert log.requests["request_id"].to_list() == ["31198570044", "31198655051"]
    first = log.exposures.row(0, named=True)
    assert (first["quantity"], first["price_paid"], first["price_shown"]) == (4, 0.75, 1.0)
    assert log.items.row(0, named=True)["title"] == "ICE - CRUSHED/CUBED, 22 LB"
    assert log.items["category"].to_list() == [["GROCERY", "FRZN ICE", "ICE - CRUSHED/CUBED"]]
    assert log.meta["set_aside"] == {
        "lines without units": 1,
        "lines of fuel and coupons": 1,
        "lines of products that are not described": 1,
    }
    assert log.meta["notes"]["lines added to another of the same product and basket"] == 1
    with pytest.raises(KarmafunnelError, match=r"row 2: column 'sales_value'.*found '?-2"):
        load("complete_journey", grocery(tmp_path, sales_value=[1.0, -2.0, 0, 0, 0, 0]))
    (tmp_path / "products.parquet").write_bytes(b"PAR1")
    grocery(tmp_path / "x")
    (tmp_path / "x" / "products.parquet").write_bytes(b"PAR1")
    with pytest.raises(KarmafunnelError, match=r"products\.parquet"):
        load("complete_journey", tmp_path / "x")


def test_real_movielens(data_root):
    log = load("movielens", data_root("movielens_100k"))
    assert log.requests.height == 55_375 and log.items.height == 1_682
    assert log.meta["set_aside"] == {"rows rated below 4": 44_625}
    assert log.items["title"].null_count() == 0 and log.requests["user_id"].n_unique() == 942
