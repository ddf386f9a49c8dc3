"""Made-up files of public data sets, in the formats of their publishers."""

import json
from pathlib import Path
from typing import Any

import polars as pl

Content = list[str] | pl.DataFrame


def lay(folder: Path, files: dict[str, Content]) -> Path:
    """The files in a folder: texts as lines, frames in the format of the name."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            path.write_text("\n".join(content) + "\n", encoding="utf-8")
        elif path.suffix == ".feather":
            content.write_ipc(path)
        else:
            content.write_parquet(path)
    return folder


def jsonl(*rows: dict[str, Any]) -> Content:
    return [json.dumps(row, ensure_ascii=False) for row in rows]


# -- KuaiSearch ------------------------------------------------------------------------------------


def search(session: int, user: int, time: int, query: str, shown: list[int], **more: Any) -> Any:
    return {
        "user_id": user, "session_id": session, "impressed_item_ids": shown,
        "clicked_item_ids": [], "purchased_item_ids": [], "time_index": time, "query": query,
        "split": "train",
    } | more  # fmt: skip


def ranked(session: int, user: int, item: int, price: float, **more: Any) -> Any:
    return {
        "user_id": user, "session_id": session, "user_fan_number": 9, "user_follow_number": 65,
        "time_index": 5, "search_entrance": "mall", "recently_clicked_item_ids": [],
        "recently_purchased_item_ids": [], "query": "红裙", "target_item_id": item,
        "target_item_price": price, "is_clicked": 0, "is_purchased": 0,
        "user_statistical_features": {"user_show_cnt_30d_hist": 0.0},
        "target_item_statistical_features": {"item_show_cnt_30d_hist": 952.0}, "split": "train",
    } | more  # fmt: skip


def product(item: int, title: str, brand: str = "无品牌", third: str = "UNKNOWN") -> Any:
    return {
        "item_id": item, "item_title": title, "brand_id": 1, "brand_name": brand, "seller_id": 1,
        "seller_name": "小店", "category_level1_id": 1, "category_level1_name": "女装",
        "category_level2_id": 1, "category_level2_name": "裙子", "category_level3_id": 0,
        "category_level3_name": third,
    }  # fmt: skip


def shopper(user: int, gender: str) -> Any:
    return {
        "user_id": user, "gender": gender, "age_bucket": "31-40", "fre_country": "中国",
        "fre_province": "辽宁", "fre_city": "鞍山",
    }  # fmt: skip


KUAISEARCH = {
    "recall.jsonl": jsonl(
        search(2, 7, 90, "红裙", [12, 11, 13], clicked_item_ids=[11], purchased_item_ids=[11, 99]),
        search(1, 7, 20, "舞鞋", [13, 12, 13], clicked_item_ids=[13, 12, 98]),
        search(3, 8, 50, "红裙", [11, 14], purchased_item_ids=[14], split="test"),
        search(4, 9, 70, "茶杯", [14, 12], clicked_item_ids=[14]),
        search(5, 9, 95, "茶杯", [12, 14], clicked_item_ids=[12]),
    ),
    "rank.jsonl": jsonl(
        ranked(2, 7, 11, 5990.0, recently_clicked_item_ids=[15], search_entrance="homepage"),
        ranked(1, 7, 13, 1190.0, recently_clicked_item_ids=[12, 16, 12]),
        ranked(1, 7, 12, 3490.0, recently_clicked_item_ids=[12, 16, 12]),
        ranked(3, 8, 11, 6100.0, recently_purchased_item_ids=[12]),
    ),
    "items.jsonl": jsonl(
        product(11, "红裙"), product(12, "舞鞋 女式", "GUARCI"), product(13, "皮草", third="貂皮")
    ),
    "users.jsonl": jsonl(shopper(7, "F"), shopper(8, "M")),
    "relevance.jsonl": jsonl(
        {"query": "红裙", "item_title": "红裙", "brand": "无品牌", "seller_name": "小店",
         "attr_value": "长裙", "score": 3},
        {"query": "舞鞋", "item_title": "皮草", "brand": "无品牌", "seller_name": "小店",
         "attr_value": "", "score": 0},
        {"query": "舞鞋", "item_title": "皮草", "brand": "别的", "seller_name": "小店",
         "attr_value": "", "score": 1},
    ),
}  # fmt: skip


# -- JDsearch --------------------------------------------------------------------------------------

JDSEARCH = {
    "release_data.txt": [
        "query\tcandidate_wid_list\tcandidate_label_list\thistory_qry_list\thistory_wid_list\t"
        "history_type_list\thistory_time_list",
        # 12 words of one query, then a browse; the last but one search is 4 + 5 s before the last
        "12\x1832\x1856\t456_457_789\t3.0_0.0_2.0\t323\x18328_323\x18328_-1_12\t889_457_256_345\t"
        "CLICK_ORD_FLW_CART\t0_12_1_4_5",
        "12\t457_456_457\t0.0_1.0_1.0\t\t\t\t0",
        "7\t789_456\t0.0_0.0\t-1\t457\tCLICK\t0_7",
        "9\t456_889\t1.0_0.0\t-1_9\t457_889\tCLICK_CLICK\t0_3_100",
    ],
    "product_data.txt": [
        "wid\tname\tbrand_id\tbrand_name\tcate_id_1\tcate_name_1\tcate_id_2\tcate_name_2\tcate_id_3"
        "\tcate_name_3\tcate_id_4\tcate_name_4\tshop_id",
        "456\t12\x1840\t5\t41\x1842\t1\t50\t2\t51\x1852\t3\t53\t4\t53\t900",
        "457\t32\x1840\t\t\t1\t50\t2\t51\x1852\t3\t53\t\t\t901",
        "789\t56\t5\t41\x1842\t1\t50\t2\t54\t6\t55\t7\t55\t900",
    ],
}


# -- Open Bandit -----------------------------------------------------------------------------------

OPEN_BANDIT = {
    "men.csv": [
        ",timestamp,item_id,position,click,propensity_score,user_feature_0,user_feature_1,"
        "user-item_affinity_0,user-item_affinity_1,user-item_affinity_2",
        "0,2019-11-24 00:03:13.442536+00:00,2,3,0,0.25,aa,bb,0.0,0.0,0.0",
        "1,2019-11-24 00:03:13.442999+00:00,0,1,1,0.5,aa,cc,2.0,0.0,1.0",
        "2,2019-11-24 00:04:00+00:00,1,2,0,1e-06,dd,bb,0.0,1.0,0.0",
        "3,2019-11-25 00:04:00.000001+00:00,0,1,1,0.125,dd,bb,0.0,0.0,0.0",
        "4,2019-11-26 10:00:00.5+00:00,1,2,1,0.125,dd,bb,0.0,0.0,0.0",
    ],
    "item_context.csv": [
        ",item_id,item_feature_0,item_feature_1",
        "0,0,-0.67,ceca",
        "1,1,-0.72,270d",
        "2,2,0.74,270d",
    ],
}


# -- Diginetica ------------------------------------------------------------------------------------

DIGINETICA = {
    "train-queries.csv": [
        "queryId;sessionId;userId;timeframe;duration;eventdate;searchstring.tokens;categoryId;"
        "items;is.test",
        "1;1;NA;1000;300;2016-05-09;12,40;0;11,12,13;FALSE",
        "2;1;NA;90000000;300;2016-05-10;;32;13,11,13;FALSE",
        "3;2;77;500;200;2016-01-05;;32;12,14;FALSE",
        "4;2;77;900;200;2016-01-05;7;0;12,11;TRUE",
        "5;3;78;500;200;2016-06-01;40;0;11,12;FALSE",
        "6;3;78;700;200;2016-06-02;;33;11,12;FALSE",
    ],
    "train-clicks.csv": [
        "queryId;timeframe;itemId",
        "1;2000;12",
        "1;2500;12",
        "2;90000500;99",
        "3;800;14",
        "4;950;12",
        "5;800;11",
    ],
    "train-item-views.csv": [
        "sessionId;userId;itemId;timeframe;eventdate",
        "1;NA;12;2100;2016-05-09",
        "9;NA;13;100;2016-01-04",
    ],
    "train-purchases.csv": [
        "sessionId;userId;timeframe;eventdate;ordernumber;itemId",
        "1;NA;95000000;2016-05-10;70;11",
        "1;NA;95000000;2016-05-10;70;11",
        "1;NA;95000000;2016-05-10;70;15",
        "2;77;400;2016-01-05;71;12",
    ],
    "products.csv": [
        "itemId;pricelog2;product.name.tokens",
        "11;3;12,40,8",
        "12;10;7",
        "13;0;",
        "14;4.5;40",
    ],
    "product-categories.csv": ["itemId;categoryId", "11;32", "12;32", "13;33", "14;1000"],
}


# -- Coveo -----------------------------------------------------------------------------------------

COVEO = {
    "search_train.csv": [
        "session_id_hash,query_vector,clicked_skus_hash,product_skus_hash,server_timestamp_epoch_ms",
        "s1,\"[0.5, -1.0]\",,\"['p1', 'p2', 'p1', 'p3']\",1548575194779",
        "s1,\"[0.25, 1e-05]\",\"['p2', 'p9']\",\"['p3', 'p2']\",1548575200000",
        "s2,\"[0.5, -1.0]\",,,1548575190000",
        "s3,\"[0.5, 2.0]\",['p4'],['p4'],1548585190000",
        "s4,\"[0.5, 2.0]\",['p1'],\"['p4', 'p1']\",1548595190000",
    ],
    "browsing_train.csv": [
        "session_id_hash,event_type,product_action,product_sku_hash,server_timestamp_epoch_ms,"
        "hashed_url",
        "s1,pageview,,,1548575194000,u1",
        "s1,event_product,detail,p2,1548575201000,u2",
        "s1,event_product,add,p2,1548575202000,u2",
        "s1,event_product,remove,p2,1548575203000,u2",
        "s2,event_product,purchase,p5,1548575000000,u3",
        "s2,event_product,click,,1548575000001,u3",
    ],
    "sku_to_content.csv": [
        "product_sku_hash,description_vector,category_hash,image_vector,price_bucket",
        "p2,,,,",
        "p1,\"[0.5, 0.25]\",a/b/c,\"[340.5, -2.0]\",7.0",
        "p3,\"[0.125, 0.25]\",a/accessories-of-clothing,,2.0",
    ],
}


# -- RecFlow ---------------------------------------------------------------------------------------

FLAGS = (
    "realshow", "rerank_pos", "rerank_neg", "rank_pos", "rank_neg", "coarse_neg", "prerank_neg",
)  # fmt: skip
DAY = 1705104000  # 2024-01-13, s


def candidate(request: int, video: int, *flags: str, **more: Any) -> dict[str, Any]:
    return {
        "request_id": request, "user_id": request % 3, "request_timestamp": (DAY + request) * 1000,
        "device_id": 1, "age": 2, "gender": 0, "province": 5, "video_id": video,
        "author_id": video // 2, "category_level_one": 1, "category_level_two": 100 + video,
        "upload_type": 3, "upload_timestamp": DAY - video, "duration": 15000,
        **{name: int(name in flags) for name in FLAGS},
        "rank_index": 1, "rerank_index": 0, "playing_time": 0, "effective_view": 0,
        "long_view": 0, "like": 0, "follow": 0, "forward": 0, "comment": 0,
    } | more  # fmt: skip


RECFLOW = {
    "2024-01-13.feather": pl.DataFrame(
        [
            candidate(1, 10, "realshow", "rerank_pos", rerank_index=2),
            candidate(1, 11, "realshow", rerank_index=1, effective_view=1),
            candidate(1, 11, "rank_pos"),
            candidate(1, 12, "rerank_pos"),
            candidate(1, 13, "rerank_neg", "rank_pos"),
            candidate(1, 14, "rank_neg", upload_timestamp=DAY + 900),
            candidate(1, 15, "coarse_neg"),
            candidate(1, 16, "prerank_neg"),
        ]
        + [
            candidate(r, v, *flags, effective_view=int(v == 10))
            for r in range(2, 7)
            for v, flags in ((10, ["realshow"]), (15, ["rank_neg"]), (16, ["prerank_neg"]))
        ]
    ),
}


# -- TAOBAO-MM -------------------------------------------------------------------------------------


def advertisement(user: int, item: int, clicked: int, *history: int) -> dict[str, Any]:
    return {
        "label_0": [1 - clicked, clicked], "129_1": user, "130_1": 4, "130_2": 1, "130_3": 30,
        "130_4": 100, "130_5": 9, "150_2_180": list(history),
        "151_2_180": [item // 10 for item in history], "205": item, "206": item // 10,
        "213": 7, "214": 2,
    }  # fmt: skip


TAOBAO_MM = {
    "train/train-shard-000000.parquet": pl.DataFrame(
        [
            row
            for user in range(20)
            for row in (
                advertisement(user, 11, user % 2, 31, 32, 31, 0),
                advertisement(user, 12, 1 - user % 2, 31, 32, 31, 0),
                advertisement(user, 12, 0, 31, 32, 31, 0),
            )
        ]
    ),
    "test/test-shard-000000.parquet": pl.DataFrame(
        [
            advertisement(90, 21, 0, 11, 33),
            advertisement(90, 11, 1, 11, 33),
            advertisement(91, 12, 1),
        ],
        infer_schema_length=None,
    ),
    "scl_embedding_int8_p90.parquet": pl.DataFrame(
        {"205": [11, 31, 99], "205_c": [[127, 0], [0, -127], [1, 1]]},
        schema={"205": pl.Int64, "205_c": pl.List(pl.Int8)},
    ),
}


FILES: dict[str, dict[str, Content]] = {
    "kuaisearch": KUAISEARCH,
    "jdsearch": JDSEARCH,
    "open_bandit": OPEN_BANDIT,
    "diginetica": DIGINETICA,
    "coveo": COVEO,
    "recflow": RECFLOW,
    "taobao_mm": TAOBAO_MM,
}

# a file in which one item stands twice, by source
TWICE: dict[str, dict[str, Content]] = {
    source: {name: [*FILES[source][name], FILES[source][name][1]]}
    for source, name in {
        "kuaisearch": "items.jsonl",
        "jdsearch": "product_data.txt",
        "open_bandit": "item_context.csv",
        "diginetica": "products.csv",
        "coveo": "sku_to_content.csv",
    }.items()
}
