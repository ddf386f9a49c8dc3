"""Online Retail: invoices of a British gift shop; see `online_retail.toml`."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ...errors import KarmafunnelError
from ...log import Log
from ._raw import find, parse, read_csv
from ._source import describe

NAMES = ("online_retail.csv.gz", "online_retail.csv", "online-retail-dataset.csv", "data.csv")
WHERE = describe("online_retail").home
COLUMNS = (
    "InvoiceNo",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "UnitPrice",
    "CustomerID",
    "Country",
)
PRODUCT = r"^(\d{5}[A-Z]*|DCGS\w+|PADS)$"
SERVICES = (
    "22016",
    "23444",
    "23574",
    "23702",
)  # a gift voucher, next day carriage, packing charge, high resolution image
MOST = 2**31 - 1  # units
REASONS = ("no customer", "no product", "no price or quantity")


def load(root: Path | str) -> Log:
    """The log of Online Retail's file in `root`; raises KarmafunnelError for a missing, truncated
    or wrong file.
    """
    path = find(root, NAMES, WHERE)
    lines = read(path)
    of_invoice = pl.col("customer").first().over("invoice")
    two = (
        lines.filter(pl.col("kind") == "sale")
        .with_columns(of_invoice.alias("first"))
        .filter(pl.col("customer") != pl.col("first"))
    )
    if two.height:
        row, invoice, customer, first = two.select("row", "invoice", "customer", "first").row(0)
        needed = f"one customer an invoice, such as {first!r} on {invoice!r}"
        raise KarmafunnelError(
            f"{path}: row {row + 1}",
            what="column 'CustomerID'",
            needs=needed,
            found=repr(customer),
        )
    sales = add_up(lines.filter(pl.col("kind") == "sale"))
    many = sales.filter(pl.col("bought") > MOST)
    if many.height:
        row, units, item = many.select("row", "bought", "code").row(0)
        needed = f"at most {MOST:,} units in an invoice"
        raise KarmafunnelError(
            f"{path}: row {row + 1}",
            what="column 'Quantity'",
            needs=needed,
            found=f"{units:,} of {item!r}",
        )
    returns = lines.filter(pl.col("kind") == "return").sort("ts", "row")
    returned, unmatched = net_out(sales, returns)
    sales = sales.with_columns(returned)
    kept = sales.filter(pl.col("returned") < pl.col("bought")).with_columns(
        (pl.col("bought") - pl.col("returned")).alias("quantity")
    )
    items = (
        titles(lines)
        .join(kept.select(pl.col("code").alias("item_id")), on="item_id", how="semi")
        .sort("item_id")
    )
    invoices = (
        kept.group_by("invoice", maintain_order=True)
        .agg(pl.col("customer", "ts", "country").first(), pl.col("row").min())
        .sort("ts", "row")
    )
    requests = invoices.select(
        pl.col("invoice").alias("request_id"),
        pl.col("customer").alias("user_id"),
        "ts",
        pl.lit("invoice").alias("source"),
        pl.concat_list(pl.format("country={}", "country")).alias("context"),
    )
    exposures = kept.sort("ts", "row").select(
        pl.col("invoice").alias("request_id"),
        pl.col("code").alias("item_id"),
        pl.lit(True).alias("purchased"),
        pl.col("price").alias("price_paid"),
        pl.col("quantity", "returned").cast(pl.Int32),
    )
    set_aside, notes = counts(lines, sales, invoices, unmatched)
    meta = {
        "currency": "GBP",
        "source": f"UCI Online Retail (D. Chen, 2015), {path.name}; {WHERE}",
        "time": "clock",
        "scenario": ["invoice"],
        "label": "purchase",
        "catalogue": "seen",
        "has": dict.fromkeys(["text", "price", "purchases", "users"], True),
        "set_aside": set_aside,
        "notes": notes,
    }
    return Log.make(items, requests, exposures, meta)


def read(path: Path) -> pl.DataFrame:
    """Typed lines in the file's order, each with its `kind`: "sale", "return" or the reason why it
    is set aside; quantities positive.
    """
    raw = read_csv(path, COLUMNS)
    types = {
        "InvoiceNo": pl.String,
        "StockCode": pl.String,
        "Quantity": pl.Int64,
        "UnitPrice": pl.Float64,
        "Country": pl.String,
    }
    raw = raw.with_columns(pl.col("Quantity", "UnitPrice").str.strip_chars())
    raw = parse(raw, types, path, {"Quantity": (-MOST, MOST)})
    when = pl.coalesce(
        pl.col("InvoiceDate").str.to_datetime(form, strict=False, time_unit="ms")
        for form in ("%Y-%m-%d %H:%M:%S", "%m/%d/%Y %H:%M")
    )
    raw = raw.with_columns(when.alias("when"), pl.col("InvoiceDate"))
    if raw["when"].null_count():
        row = int(raw["when"].is_null().arg_true()[0])
        found = raw["InvoiceDate"][row]
        needed = "a time such as 2010-12-01 08:26:00 or 12/1/2010 8:26"
        raise KarmafunnelError(
            f"{path}: row {row + 1}",
            what="column 'InvoiceDate'",
            needs=needed,
            found=repr(found),
        )
    code, invoice = (
        pl.col("StockCode").str.strip_chars().str.to_uppercase(),
        pl.col("InvoiceNo").str.strip_chars(),
    )
    customer = pl.col("CustomerID").str.strip_chars().str.strip_suffix(".0")
    lines = raw.with_row_index("row").select(
        "row",
        invoice.alias("invoice"),
        code.alias("code"),
        pl.col("Description").alias("description"),
        pl.col("Quantity").abs().alias("quantity"),
        pl.col("UnitPrice").alias("price"),
        ((pl.col("Quantity") < 0) | invoice.str.starts_with("C")).alias("back"),
        pl.col("when").dt.replace_time_zone("UTC").min().over(invoice).alias("ts"),
        pl.when(customer != "").then(customer).alias("customer"),
        pl.col("Country").alias("country"),
    )
    kind = (
        pl.when(pl.col("customer").is_null()).then(pl.lit(REASONS[0]))
        .when(~is_product()).then(pl.lit(REASONS[1]))
        .when((pl.col("price") <= 0) | (pl.col("quantity") == 0)).then(pl.lit(REASONS[2]))
        .when("back").then(pl.lit("return"))
        .otherwise(pl.lit("sale"))
    )  # fmt: skip
    return lines.with_columns(kind.alias("kind"))


def is_product() -> pl.Expr:
    """Whether a line's `code` is a product's."""
    return pl.col("code").str.contains(PRODUCT) & ~pl.col("code").is_in(SERVICES)


def add_up(sales: pl.DataFrame) -> pl.DataFrame:
    """One row an (invoice, item): units bought, money, unit price (the money over the units where
    the lines differ in price).
    """
    money = (pl.col("price") * pl.col("quantity")).sum()
    same = pl.col("price").min() == pl.col("price").max()
    return sales.group_by("invoice", "code", maintain_order=True).agg(
        pl.col("row", "customer", "ts", "country").first(),
        pl.col("quantity").sum().alias("bought"),
        pl.when(same)
        .then(pl.col("price").first())
        .otherwise(money / pl.col("quantity").sum())
        .alias("price"),
    )


def net_out(sales: pl.DataFrame, returns: pl.DataFrame) -> tuple[pl.Series, int]:
    """Units returned of every sale row (Int64, aligned), and the units returned that no earlier
    purchase covers.

    A return takes from the customer's purchases of the item at or before its ts, latest first.
    """
    pair = ["customer", "code"]
    part = sales.with_row_index("sale").join(returns.select(pair).unique(), on=pair, how="semi")
    bought = part.select(
        *pair, "ts", pl.lit(0).alias("back"), "row", "bought", pl.col("sale").cast(pl.Int64)
    )
    back = returns.select(
        *pair,
        "ts",
        pl.lit(1).alias("back"),
        "row",
        pl.col("quantity").alias("bought"),
        pl.lit(-1, dtype=pl.Int64).alias("sale"),
    )
    story = pl.concat([bought, back]).sort(*pair, "ts", "back", "row")
    returned = [0] * sales.height
    unmatched = 0
    open_purchases: list[list[int]] = []  # [sale row, units left], the latest last
    owner = None
    story = story.select(*pair, "back", "bought", "sale")
    for customer, code, is_return, units, sale in story.iter_rows():
        if (customer, code) != owner:
            owner, open_purchases = (customer, code), []
        if not is_return:
            open_purchases.append([sale, units])
            continue
        while units and open_purchases:
            latest = open_purchases[-1]
            taken = min(units, latest[1])
            returned[latest[0]] += taken
            latest[1] -= taken
            units -= taken
            if latest[1] == 0:
                open_purchases.pop()
        unmatched += units
    return pl.Series("returned", returned, dtype=pl.Int64), unmatched


def titles(lines: pl.DataFrame) -> pl.DataFrame:
    """item_id and title of every product: the first description on a line that was sold for money,
    to anybody.
    """
    title = pl.col("description").str.replace_all(r"\s+", " ").str.strip_chars()
    sold = lines.filter(is_product() & (pl.col("price") > 0) & ~pl.col("back"))
    sold = sold.with_columns(title.alias("title"))
    good = (pl.col("title") != "") & pl.col("title").str.contains(r"\p{L}{2}")
    by_item = sold.group_by(pl.col("code").alias("item_id"), maintain_order=True)
    return by_item.agg(pl.col("title").filter(good).first())


def counts(
    lines: pl.DataFrame, sales: pl.DataFrame, invoices: pl.DataFrame, unmatched: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Counts of what was set aside, and of what was kept and netted: lines, units, money (GBP)."""
    number = dict(lines.group_by("kind").len().iter_rows())
    money = lines.filter(pl.col("kind") == "sale").select(pl.col("price") * pl.col("quantity"))
    sold = money.to_series().sum()
    back = (sales["price"] * sales["returned"]).sum()
    set_aside = {f"lines, {kind}": number.get(kind, 0) for kind in REASONS} | {
        "units returned without an earlier purchase": unmatched,
        "lines of invoices netted out to zero": int((sales["returned"] == sales["bought"]).sum()),
        "invoices netted out to zero": sales["invoice"].n_unique() - invoices.height,
    }
    notes = {
        "lines, sales": number.get("sale", 0),
        "lines, returns": number.get("return", 0),
        "sale lines added to another of the same item and invoice": (
            number.get("sale", 0) - sales.height
        ),
        "units returned and netted out": int(sales["returned"].sum()),
        "money, sales": round(float(sold), 2),
        "money, returned and netted out": round(float(back), 2),
    }
    return set_aside, notes
