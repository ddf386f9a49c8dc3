"""Guess the roles of a table's columns from their names and values, each with a reason."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from ...errors import KarmafunnelError
from .column_map import EXCEL, OF_ITEMS, PER, ColumnMap, Per, Times
from .opening import ROW

GRADES = ("relevance", "relevancelabel", "relevancegrade", "grade", "judgement", "judgment")
# Names by role, best first, without case, accents and signs; some are French or German.
NAMES: dict[str, tuple[str, ...]] = {
    "user": (
        "user",
        "userid",
        "uid",
        "visitor",
        "visitorid",
        "customer",
        "customerid",
        "client",
        "clientid",
        "member",
        "memberid",
        "shopper",
        "account",
        "accountid",
        "householdkey",
        "householdid",
        "household",
        "reviewerid",
        "utilisateur",
        "idclient",
        "acheteur",
        "kunde",
        "kunden",
        "kundennummer",
        "nutzer",
        "benutzer",
        "usersession",
        "deviceid",
        "cookie",
        "cookieid",
        "person",
    ),
    "item": (
        "item",
        "itemid",
        "product",
        "productid",
        "sku",
        "stockcode",
        "asin",
        "parentasin",
        "movie",
        "movieid",
        "film",
        "article",
        "articleid",
        "goods",
        "goodsid",
        "news",
        "newsid",
        "track",
        "trackid",
        "book",
        "isbn",
        "bookid",
        "business",
        "businessid",
        "produit",
        "idproduit",
        "codeproduit",
        "reference",
        "produkt",
        "produktid",
        "artikel",
        "artikelnummer",
        "venueid",
        "docid",
        "documentid",
        "adgroupid",
        "aid",
    ),
    "time": (
        "time",
        "timestamp",
        "ts",
        "datetime",
        "eventtime",
        "date",
        "createdat",
        "unixreviewtime",
        "unixtime",
        "invoicedate",
        "eventdate",
        "sorttimestamp",
        "orderdate",
        "purchasedate",
        "tdat",
        "transactiontimestamp",
        "clicktime",
        "servertime",
        "horodatage",
        "heure",
        "dateheure",
        "zeit",
        "datum",
        "zeitstempel",
        "reviewtime",
        "day",
    ),
    "event": (
        "event",
        "eventtype",
        "eventname",
        "behavior",
        "behaviortype",
        "behaviour",
        "action",
        "actiontype",
        "interaction",
        "type",
        "evenement",
        "ereignis",
    ),
    "rating": (
        *GRADES,
        "rating",
        "stars",
        "overall",
        "score",
        "reviewscore",
        "note",
        "evaluation",
        "bewertung",
        "sterne",
    ),
    "clicked": (
        "clicked",
        "click",
        "isclick",
        "isclicked",
        "clic",
        "geklickt",
        "liked",
        "like",
        "label",
    ),
    "purchased": (
        "purchased",
        "purchase",
        "ispurchase",
        "bought",
        "isbuy",
        "buy",
        "converted",
        "conversion",
        "achat",
        "gekauft",
    ),
    "request": (
        "request",
        "requestid",
        "searchid",
        "impressionid",
        "impression",
        "queryid",
        "qid",
        "listid",
        "serpid",
        "slateid",
        "requete",
    ),
    "session": ("session", "sessionid", "visit", "visitid", "sitzung"),
    "basket": (
        "basket",
        "basketid",
        "invoice",
        "invoiceno",
        "invoiceid",
        "order",
        "orderid",
        "ordernumber",
        "transactionid",
        "cartid",
        "panier",
        "commande",
        "ticket",
        "transaction",
        "receipt",
        "auftrag",
        "auftrags",
        "bestell",
        "rechnungs",
        "bon",
        "facture",
        "bestellung",
        "rechnung",
    ),
    "query": (
        "query",
        "querytext",
        "searchterm",
        "searchterms",
        "keyword",
        "keywords",
        "search",
        "q",
        "searchquery",
        "recherche",
        "suche",
        "suchbegriff",
    ),
    "position": ("position", "pos", "rank", "slot", "place", "rang"),
    "propensity": ("propensity", "propensityscore", "pscore"),
    "price": (
        "price",
        "unitprice",
        "priceshown",
        "pricepaid",
        "salesvalue",
        "amount",
        "prix",
        "prixunitaire",
        "pu",
        "stueckpreis",
        "stuckpreis",
        "einzelpreis",
        "montant",
        "preis",
        "betrag",
        "itemprice",
    ),
    "quantity": ("quantity", "qty", "units", "quantite", "qte", "menge", "anzahl", "itemcount"),
    "currency": ("currency", "currencycode", "ccy", "devise", "waehrung"),
    "title": (
        "title",
        "itemtitle",
        "producttitle",
        "movietitle",
        "itemname",
        "productname",
        "description",
        "libelle",
        "designation",
        "titel",
        "bezeichnung",
    ),
    "brand": ("brand", "brandname", "marque", "marke", "manufacturer"),
    "category": (
        "category",
        "categories",
        "genres",
        "genre",
        "maincategory",
        "department",
        "categorie",
        "rayon",
        "kategorie",
        "categoryid",
        "productcategory",
    ),
}
ITEM_NAMES: dict[str, tuple[str, ...]] = {
    "item": NAMES["item"] + ("id",),
    "title": (
        "title",
        "name",
        "productname",
        "itemname",
        "movietitle",
        "producttitle",
        "titre",
        "nom",
        "libelle",
        "designation",
        "titel",
        "bezeichnung",
        "prodname",
        "producttype",
    ),
    "brand": (*NAMES["brand"], "store", "vendor", "publisher"),
    "category": (*NAMES["category"], "class"),
    "price": ("price", "listprice", "prix", "preis", "unitprice"),
    "description": (
        "description",
        "desc",
        "longdescription",
        "beschreibung",
        "overview",
        "text",
        "detaildesc",
    ),
}
QUERY_NAMES: dict[str, tuple[str, ...]] = {
    "request": NAMES["request"] + ("id",),
    "query": NAMES["query"] + ("text", "terms", "title", "searchstringtokens"),
    "user": NAMES["user"],
    "time": NAMES["time"],
    "session": NAMES["session"],
}
# Words of a name that say only that it identifies, and of which price or currency it is.
OF_IDS = ("n", "no", "nr", "num", "numero", "number", "nummer", "id", "code", "cod", "ref")
OF_PRICES = ("ht", "ttc", "tva", "net", "netto", "brutto", "brut", "incl", "excl", "vat", "tax")
COINS = ("eur", "usd", "gbp", "chf", "jpy")
NUMERIC = ("price", "rating", "quantity", "position", "propensity")
IDENTIFIED = ("user", "item", "request", "session", "basket")
CLICK_WORDS = (
    "click",
    "clicked",
    "view",
    "viewed",
    "pv",
    "detail",
    "pageview",
    "productview",
    "viewitem",
    "clicks",
    "visit",
    "read",
    "play",
    "watch",
    "clic",
    "vue",
    "clickout",
)
SHOWN_WORDS = ("impression", "impressions", "shown", "show", "exposure", "display", "affichage")
BUY_WORDS = (
    "buy",
    "bought",
    "purchase",
    "purchased",
    "transaction",
    "order",
    "orders",
    "ordered",
    "checkout",
    "sale",
    "pay",
    "paid",
    "conversion",
    "achat",
    "kauf",
)
FORMATS = (
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f UTC",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y",
    "%d/%m/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M",
    "%d/%m/%Y",
    "%m/%d/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M",
    "%m/%d/%Y",
    "%m/%d/%Y %I:%M:%S %p",
    "%m/%d/%Y %I:%M %p",
    "%d-%m-%Y %H:%M:%S",
    "%d-%m-%Y %H:%M",
    "%d-%m-%Y",
    "%Y%m%d%H%M%S",
    "%Y%m%d",
)
FIRST, LAST = 1980, 2100  # years that an interaction may be of
NO_MOMENTS = (pl.Time, pl.Duration)  # times of a day, and spans of time
SERIALS = (32_874, 54_789)  # 1990 to 2050 in days of a spreadsheet
SIGNS = {"€": "EUR", "$": "USD", "£": "GBP", "¥": "JPY", "₹": "INR", "zł": "PLN", "₽": "RUB"}
NAMES_OF_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


@dataclass(frozen=True)
class Reason:
    """A guess about a column or a setting, and the reason for it."""

    what: str
    taken: str
    why: str


def plain(name: str) -> str:
    """A name without case, accents, signs and spaces: "Prix unitaire" is "prixunitaire"."""
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]", "", letters.lower())


def split(name: str) -> list[str]:
    """The words of a name without case, accents and signs: "Réf_articleNo" is ref, article, no."""
    apart = unicodedata.normalize("NFKD", name)
    letters = "".join(c for c in apart if not unicodedata.combining(c))
    letters = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", letters)
    return re.findall(r"[a-z0-9]+", letters.lower())


def core(name: str, role: str) -> list[str]:
    """What a name may say beside that it identifies or prices something: "N° client" client,
    "Kundennr" kunden, "P.U. HT" pu.
    """
    if role in IDENTIFIED:
        bare = "".join(word for word in split(name) if word not in OF_IDS)
        signs = "|".join(OF_IDS)
        found = [re.sub(f"({signs})$", "", bare), re.sub(f"^({signs})", "", bare)]
        # what lost a word that identifies may be listed with one: "Customer No." as customerid
        also = [f"{one}id" for one in (bare, *found) if one and one != plain(name)]
        return [one for one in (bare, *found) if one] + also
    if role == "price":
        return ["".join(word for word in split(name) if word not in (*OF_PRICES, *COINS))]
    return []


def by_name(names: Sequence[str], known: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Columns by role: the best matching name for each, first as it is, else by its `core`; a
    column has at most one role.
    """
    found: dict[str, str] = {}
    ranked = []
    whole = {word for words in known.values() for word in words}
    for order, (role, words) in enumerate(known.items()):
        for name in names:
            if plain(name) in words:
                ranked.append((0, words.index(plain(name)), order, role, name))
            elif plain(name) not in whole:
                like = [word for word in core(name, role) if word in words]
                ranked += [(1, words.index(word), order, role, name) for word in like[:1]]
    for _, _, _, role, name in sorted(ranked):
        if role not in found and name not in found.values():
            found[role] = name
    return found


def texts(frame: pl.DataFrame, column: str) -> pl.Series:
    """The values of a column that are not missing, as text."""
    return frame[column].cast(pl.String, strict=False).drop_nulls().str.strip_chars()


def numbers(values: pl.Series, decimal: str = ".") -> pl.Series:
    """Numbers as they are, and text as numbers; null where it is no number. Signs of thousands
    stand before exactly three digits.
    """
    if values.dtype.is_numeric():
        return values.cast(pl.Float64)
    bare = values.str.replace_all(
        rf"[\s\u00a0\u202f'{''.join(s for s in SIGNS if len(s) == 1)}]", ""
    )
    bare = bare.str.replace(r"^[A-Z]{3}|[A-Z]{3}$|zł$", "")
    if decimal == ".":  # 1,234.50
        thousands = bare.str.contains(r"^-?[1-9]\d{0,2}(,\d{3})+(\.\d+)?$")
        cut = bare.str.replace_all(",", "", literal=True)
        bare = cut.zip_with(thousands.fill_null(False), bare)
    if decimal == ",":  # 1.234,50
        fits = bare.str.contains(r"^-?(\d*|[1-9]\d{0,2}(\.\d{3})+)(,\d*)?$").fill_null(False)
        bare = bare.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
        bare = bare.zip_with(fits, pl.repeat(None, bare.len(), dtype=pl.String, eager=True))
    return bare.cast(pl.Float64, strict=False)


def guess_time(values: pl.Series, named: bool = False) -> tuple[Times, str] | None:
    """How times are written, and a description; None where the values are no times.

    named: whether the column is named as a time, so that days of a spreadsheet are times too.
    """
    if values.dtype.is_nested() or values.dtype in NO_MOMENTS:
        return None
    if values.dtype.is_temporal():
        zone = getattr(values.dtype, "time_zone", None)
        return Times(format="as they are"), f"times of the file, {zone or 'taken as UTC'}"
    sample = values.cast(pl.String, strict=False).drop_nulls().str.strip_chars()
    if sample.is_empty():
        return None
    number = sample.cast(pl.Float64, strict=False)
    if number.null_count() <= 0.05 * number.len():
        middle = float(number.drop_nulls().median() or 0)  # type: ignore[arg-type]
        for unit, seconds in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)):
            when = middle * seconds
            if (
                datetime(FIRST, 1, 1, tzinfo=UTC).timestamp()
                <= when
                <= datetime(LAST, 1, 1, tzinfo=UTC).timestamp()
            ):
                day = datetime.fromtimestamp(when, UTC).date()
                if re.fullmatch(r"(19|20)\d{6}(\d{6})?", str(sample[0])):
                    break
                return Times(unit=unit), f"{NAMES_OF_UNITS[unit]} since 1970 (median {day}), UTC"
        days = number.drop_nulls()
        if named and days.is_between(*SERIALS).mean() == 1:
            day = datetime(1899, 12, 30).date() + timedelta(days=int(middle))
            return Times(unit=EXCEL), f"days as spreadsheets count them (median {day}), as UTC"
    best, most = "", 0
    for form in FORMATS:
        fits = sample.len() - parsed(sample, form).null_count()
        if fits > most:
            best, most = form, fits
    if most < 0.9 * sample.len():
        return None
    both = {"%d/%m/%Y": "%m/%d/%Y", "%m/%d/%Y": "%d/%m/%Y"}
    words = f"{best}, as UTC where it names no zone"
    for mine, other in both.items():
        if (
            best.startswith(mine)
            and parsed(sample, best.replace(mine, other)).null_count() == sample.len() - most
        ):
            words += "; day and month could be the other way round: say time.format in a map"
    return Times(format=best), words


def parsed(sample: pl.Series, form: str) -> pl.Series:
    """Text as times in one format; null where it does not fit."""
    zoned = "%#z" in form
    return (
        sample.str.to_datetime(form, time_unit="ms", strict=False, exact=True)
        if not zoned
        else (
            sample.str.to_datetime(form, time_unit="ms", time_zone="UTC", strict=False, exact=True)
        )
    )


def guess(
    frame: pl.DataFrame, given: Mapping[str, str], name: str, path: Path
) -> tuple[ColumnMap, list[Reason]]:
    """Guess the map of a table of interactions, with reasons; `given` roles are not guessed.

    Raises:
        KarmafunnelError: where there is no item column or no time column.
    """
    names = [column for column in frame.columns if column != ROW]
    if missing := [column for column in given.values() if column and column not in names]:
        raise KarmafunnelError(path, needs=f"columns among {names}", found=missing)
    single = [n for n in names if not frame[n].dtype.is_nested()]  # no lists
    named = by_name([n for n in single if n not in given.values()], NAMES)
    if several := [n for n in given.values() if n and n not in single]:
        raise KarmafunnelError(
            path, needs="columns that hold one value a row", found=f"lists in {several}"
        )
    columns = {role: column for role, column in named.items() if role not in given}
    columns |= {role: column for role, column in given.items() if column}
    reasons: list[Reason] = []
    for role, column in columns.items():
        reasons.append(Reason(role, column, "as told" if role in given else "its name"))
    for role in OF_ITEMS:
        if role in columns and role not in given and not describes_items(frame, columns, role):
            reasons = [reason for reason in reasons if reason.what != role]
            del columns[role]
    both = {"request", "user"} <= set(columns) and "request" not in given
    if both and shared_by_users(frame, columns["request"], columns["user"]):
        reasons = [reason for reason in reasons if reason.what != "request"]
        why = "several users share its values: they are no requests"
        reasons.append(Reason("request", f"not {columns.pop('request')}", why))
    time, why = Times(), ""
    if "time" in columns:
        found = guess_time(frame[columns["time"]], named=True)
        if found is None:
            raise no_times(path, columns["time"], frame[columns["time"]])
        time, why = found
    else:
        for column in names:
            words = split(column)
            identifies = plain(column).endswith(("id", "code", "number")) or any(
                word in OF_IDS for word in words
            )
            if column in columns.values() or identifies:
                continue
            if (found := guess_time(frame[column])) is not None:
                columns["time"], (time, why) = column, found
                reasons.append(Reason("time", column, "its values are times"))
                break
    for role, option in (("item", "item"), ("time", "time")):
        if role not in columns:
            raise KarmafunnelError(
                path,
                needs=f"a column of {role}s",
                found=f"columns {names}{said(columns)}",
                hint=f"name it: --column {option}=NAME",
            )
    reasons = [
        r if r.what != "time" else Reason("time", r.taken, f"{r.why}; {why}") for r in reasons
    ]
    reasons.sort(key=lambda reason: list(NAMES).index(reason.what))
    decimals = guess_decimals(frame, columns)
    decimal = next(iter(decimals.values()), ".")
    if decimal == ",":
        reasons.append(Reason("decimal", ",", "of the numbers"))
    extra, more = guess_events(frame, columns, decimals)
    per, why = guess_per(columns, frame)
    if "position" in columns and "position" not in given:
        extra |= guess_positions(frame, columns, per, extra, more)
    kept = ("decimal", "request", *columns)
    reasons = [reason for reason in reasons if reason.what in kept] + more
    reasons.append(Reason("requests", f"one for each {per}", why))
    if unused := [column for column in names if column not in columns.values()]:
        reasons.append(Reason("not used", ", ".join(unused), "no role is known for them"))
    made = ColumnMap(name=name, columns=columns, per=per, time=time, decimal=decimal, **extra)
    return made, reasons


def said(columns: Mapping[str, str]) -> str:
    """The roles that were found, for a refusal: "; of these, user is 'Client'"."""
    roles = ", ".join(f"{role} is {name!r}" for role, name in columns.items())
    return f"; of these, {roles}" if roles else ""


def no_times(path: Path, column: str, found: pl.Series) -> KarmafunnelError:
    """The error for a column named as a time that holds none."""
    what = f"column {column!r}"
    if found.dtype in NO_MOMENTS:
        return no_moments(path, column, found)
    found = found.cast(pl.String, strict=False).drop_nulls().str.strip_chars()
    hint = "a map may give their format (--map, time.format); or name another column: --column"
    needs = "times of one format"
    number = found.cast(pl.Int64, strict=False).drop_nulls()
    if number.len() == found.len() and number.is_between(1900, 2100).all():
        needs, hint = "times", "years alone leave the order open; name another column: --column"
    elif number.len() == found.len():
        needs, hint = "times", "numbers of an order may be days: a map with time.unit; or --column"
    return KarmafunnelError(
        path, what=what, needs=needs, found=found.head(3).to_list(), hint=f"{hint} time=NAME"
    )


def no_moments(path: Path, column: str, found: pl.Series) -> KarmafunnelError:
    """The error for a column of times without a day."""
    return KarmafunnelError(
        path,
        what=f"column {column!r}",
        needs="times with a day",
        found="times of a day" if found.dtype == pl.Time else "spans of time",
        hint="name another column: --column time=NAME",
    )


def shared_by_users(frame: pl.DataFrame, request: str, user: str) -> bool:
    """Whether values of a column often belong to several users, so that they are no requests."""
    pairs = frame.select(pl.col(request).alias("request"), pl.col(user).alias("user"))
    users = pairs.drop_nulls().group_by("request").agg(pl.col("user").n_unique())["user"]
    return users.len() > 0 and float((users > 1).mean() or 0) > 0.1  # type: ignore[arg-type]


def currencies(values: pl.Series) -> pl.Series:
    """The currency of each price by its sign or code, such as "€ 3.50" or "3.50 USD"; null for a
    bare number.
    """
    before = values.str.extract(r"^-?\s*([A-Z]{3})\s*-?\d")
    after = values.str.extract(r"\d\s*([A-Z]{3})$")
    sign = values.str.extract(f"({'|'.join(map(re.escape, SIGNS))})").replace(SIGNS)
    return pl.select(pl.coalesce(before, after, sign)).to_series()


def describes_items(frame: pl.DataFrame, columns: Mapping[str, str], role: str) -> bool:
    """Whether items have one title, brand or category each, unlike the titles of reviews."""
    if "item" not in columns:
        return False
    pairs = frame.select(item=columns["item"], told=columns[role]).drop_nulls()
    items = pairs.group_by("item").agg(pl.len(), pl.col("told").n_unique())
    often = items.filter(pl.col("len") > 1)
    return often.height > 0 and float((often["told"] == 1).mean() or 0) >= 0.8  # type: ignore[arg-type]


PER_WHY = {
    "request": "there is a column of requests",
    "basket": "there is a column of baskets",
    "session": "as told",
    "event": "no column says which rows belong together",
}


def guess_per(columns: Mapping[str, str], frame: pl.DataFrame) -> tuple[Per, str]:
    """What a request is, and why."""
    empty = ""
    whole: tuple[Per, Per] = ("request", "basket")
    for role in whole:
        if role in columns:
            missing = frame.height - int((texts(frame, columns[role]) != "").sum())
            if missing <= 0.05 * frame.height:
                return role, PER_WHY[role]
            empty = f"; {columns[role]!r} is empty in {missing:,} of {frame.height:,} rows"
    if "session" in columns and "position" in columns:
        places = frame.select(columns["session"], columns["position"])
        if places.is_unique().mean() == 1:
            return "session", "no session has a position twice" + empty
    return "event", PER_WHY["event"] + empty


def guess_decimals(
    frame: pl.DataFrame, columns: Mapping[str, str], other: str = "."
) -> dict[str, str]:
    """The decimal separator of each column of numbers, by role. Where its texts do not tell, it is
    that of the first column that does, else `other`.
    """
    told: dict[str, str] = {}
    roles = [role for role in NUMERIC if columns.get(role) in frame.columns]
    for role in roles:
        if frame[columns[role]].dtype != pl.String:
            continue
        sample = texts(frame, columns[role])
        comma = sample.str.contains(r"^[^,]*\d,(\d{1,2}|\d{4,})\D*$|^\D*0,\d").sum()
        point = sample.str.contains(r"^[^.]*\d\.(\d{1,2}|\d{4,})\D*$|^\D*0\.\d").sum()
        if comma != point:
            told[role] = "," if comma > point else "."
    first = next(iter(told.values()), other)
    return {role: told.get(role, first) for role in roles}


def guess_events(
    frame: pl.DataFrame, columns: dict[str, str], decimals: Mapping[str, str]
) -> tuple[dict[str, Any], list[Reason]]:
    """Guess what counts as a click and as a purchase."""
    extra: dict[str, Any] = {}
    reasons: list[Reason] = []
    if "event" in columns:
        found = texts(frame, columns["event"]).value_counts(sort=True)[columns["event"]].to_list()
        clicks = tuple(value for value in found if plain(value) in CLICK_WORDS)
        purchases = tuple(value for value in found if plain(value) in BUY_WORDS)
        shown = tuple(value for value in found if plain(value) in SHOWN_WORDS)
        shown = shown if "request" in columns else ()
        if clicks or purchases:
            extra |= {"clicks": clicks, "purchases": purchases, "shown": shown}
            others = [value for value in found if value not in (*clicks, *purchases, *shown)]
            if shown:
                reasons.append(Reason("shown", ", ".join(shown), "names of events"))
            if clicks:
                reasons.append(Reason("clicks", ", ".join(clicks), "names of events"))
            if purchases:
                reasons.append(Reason("purchases", ", ".join(purchases), "names of events"))
            if others:
                reasons.append(Reason("set aside", ", ".join(others[:8]), "neither"))
        else:
            del columns["event"]
            reasons.append(Reason("event", "not used", f"its values are no events: {found[:5]}"))
    if "rating" in columns:
        values = frame[columns["rating"]]
        values = values if values.dtype.is_numeric() else texts(frame, columns["rating"])
        values = numbers(values, decimals["rating"]).drop_nulls()
        top = float(values.max() or 0)  # type: ignore[arg-type]
        if values.is_empty() or values.n_unique() < 2:
            why = "all are the same" if len(values) else "no numbers"
            reasons.append(Reason("rating", f"not {columns.pop('rating')}", why))
        else:
            graded = plain(columns["rating"]) in GRADES
            least = 1.0 if graded or top <= 1 else 4.0 if top == 5 else 0.8 * top
            extra["rating"] = least
            reasons.append(Reason("click", f"rating >= {least:g}", f"ratings go up to {top:g}"))
    if not any(role in columns for role in ("event", "clicked", "purchased", "rating")):
        bought = any(role in columns for role in ("basket", "quantity"))
        what = "a purchase" if bought else "a click"
        why = "there are baskets or quantities" if bought else "nothing says that some are more"
        reasons.append(Reason("each row", what, why))
    return extra, reasons


def guess_positions(
    frame: pl.DataFrame,
    columns: dict[str, str],
    per: Per,
    extra: Mapping[str, Any],
    reasons: list[Reason],
) -> dict[str, Any]:
    """The number of the first position; without the column where its rows are no lists."""
    flags = [columns[role] for role in ("clicked", "purchased") if role in columns]
    rest = "rating" in columns or bool(extra.get("shown"))
    for column in flags:
        rest |= texts(frame, column).n_unique() > 1
    if per == "event" or not rest:
        why = "each row is a request" if per == "event" else "all of its rows are clicked"
        reasons.append(Reason("position", f"not {columns.pop('position')}", f"{why}: no lists"))
        return {}
    first = first_position(frame, columns["position"])
    if first == 0:
        reasons.append(Reason("positions", "from 0 on", f"the smallest of {columns['position']}"))
    return {"first_position": first}


def first_position(frame: pl.DataFrame, column: str) -> int:
    """Whether positions count from 0 or from 1."""
    least = numbers(texts(frame, column)).min()
    return 0 if least == 0 else 1


def guess_items(frame: pl.DataFrame, path: Path) -> tuple[dict[str, str], list[Reason]]:
    """Guess the roles of an item table's columns; raises KarmafunnelError where none is an id."""
    found = by_name([name for name in frame.columns if name != ROW], ITEM_NAMES)
    if "item" not in found:
        columns = [n for n in frame.columns if n != ROW]
        needs = "a column of item ids"
        raise KarmafunnelError(path, needs=needs, found=f"{columns}{said(found)}")
    return found, [Reason(f"items: {role}", column, "its name") for role, column in found.items()]


assert set(PER_WHY) == set(PER)
