"""RecTools' two-stage CandidateRankingModel: candidate generators learnt from W1, a CatBoost
reranker from W2a.

The first trial is RecTools' own tutorial: popular and cosine item-kNN, 30 candidates each, ranks
and scores as features, three negatives a user, a CatBoost classifier. The others have more
candidates, EASE and a listwise ranker. Its `fit` cuts one time range and learns of users; here the
same steps are taken one by one, so that every list is as of its request. Features beside those of
the generators: how often an item was had in W1, how much the user had, how often and how lately the
user had the item.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from catboost import CatBoostClassifier, CatBoostRanker
from exchange import CHUNK, Data, Scorer, main
from implicit.nearest_neighbours import CosineRecommender
from rectools import Columns
from rectools.dataset import Dataset
from rectools.model_selection import TimeRangeSplitter
from rectools.models import EASEModel, ImplicitItemKNNWrapperModel, PopularModel
from rectools.models.ranking import (
    CandidateFeatureCollector,
    CandidateGenerator,
    CandidateRankingModel,
    CatBoostReranker,
    PerUserNegativeSampler,
)
from rectools_frames import asked, learnt

TRIALS = [
    {"candidates": 30, "K": 20, "ease": False, "negatives": 3, "loss": "Logloss"},  # the tutorial's
    {"candidates": 100, "K": 200, "ease": True, "negatives": 3, "loss": "Logloss"},
    {"candidates": 200, "K": 200, "ease": True, "negatives": 20, "loss": "Logloss"},
    {"candidates": 200, "K": 200, "ease": True, "negatives": 20, "loss": "QuerySoftMax"},
]


class Collector(CandidateFeatureCollector):
    """Counts of W1 and of the request's history."""

    def __init__(self, popularity: pd.Series):
        self.popularity = popularity

    def _get_user_features(
        self, users: np.ndarray, dataset: Dataset, fold_info: dict | None
    ) -> pd.DataFrame:
        frame = pd.DataFrame({Columns.User: users})
        counts = history_of(dataset).groupby(Columns.User).size()
        return frame.assign(had=frame[Columns.User].map(counts).fillna(0))

    def _get_item_features(
        self, items: np.ndarray, dataset: Dataset, fold_info: dict | None
    ) -> pd.DataFrame:
        return pd.DataFrame(
            {
                Columns.Item: items,
                "popularity": pd.Series(items).map(self.popularity).fillna(0).to_numpy(),
            }
        )

    def _get_user_item_features(
        self, useritem: pd.DataFrame, dataset: Dataset, fold_info: dict | None
    ) -> pd.DataFrame:
        history = history_of(dataset)
        history["steps"] = history.groupby(Columns.User).cumcount(ascending=False)
        own = (
            history.groupby(Columns.UserItem)["steps"]
            .agg(own_count="size", own_steps="min")
            .reset_index()
        )
        return (
            useritem[Columns.UserItem]
            .merge(own, on=Columns.UserItem, how="left")
            .fillna({"own_count": 0})
        )


def history_of(dataset: Dataset) -> pd.DataFrame:
    """Who had what, by external ids, oldest first."""
    frame = dataset.interactions.df.sort_values(Columns.Datetime, kind="stable")
    return pd.DataFrame(
        {
            Columns.User: dataset.user_id_map.convert_to_external(frame[Columns.User]),
            Columns.Item: dataset.item_id_map.convert_to_external(frame[Columns.Item]),
        }
    )


class TwoStage:
    """A CandidateRankingModel asked request by request; also ranks candidates that others found,
    once taught on such.
    """

    def __init__(
        self,
        data: Data,
        seed: int,
        windows: list,
        candidates: int,
        K: int,
        ease: bool,
        negatives: int,
        loss: str,
    ):
        self.data, self.seed, self.negatives, self.loss = data, seed, negatives, loss
        dataset = learnt(data, windows)
        self.items = dataset.item_id_map
        models = [
            PopularModel(),
            ImplicitItemKNNWrapperModel(CosineRecommender(K=K, num_threads=1)),
        ]
        models += (
            [EASEModel(recommend_n_threads=1, recommend_use_gpu_ranking=False)] if ease else []
        )
        generators = [
            CandidateGenerator(
                m,
                candidates,
                keep_ranks=True,
                keep_scores=True,
                scores_fillna_value=0.0,
                ranks_fillna_value=candidates + 1,
            )
            for m in models
        ]
        popularity = history_of(dataset).groupby(Columns.Item).size()
        self.model = CandidateRankingModel(
            generators,
            TimeRangeSplitter("7D", n_splits=1),
            self.reranker(),
            PerUserNegativeSampler(negatives, seed),
            Collector(popularity),
        )
        self.generators = self.model.cand_gen_dict
        for generator in self.generators.values():
            generator.fit(dataset, for_train=True)
            # W1 is what there is to learn from, in training and when asked
            generator.is_fitted_for_recommend = True
        self.learn(
            self.model.reranker,
            lambda rows, history, allowed: self.found(rows, history, allowed, True),
        )
        self.model.is_fitted = True
        self.of_others: CatBoostReranker | None = None

    def reranker(self) -> CatBoostReranker:
        common = {
            "random_seed": self.seed,
            "thread_count": 1,
            "verbose": False,
            "allow_writing_files": False,
        }
        if self.loss == "Logloss":
            return CatBoostReranker(CatBoostClassifier(**common))
        return CatBoostReranker(CatBoostRanker(loss_function=self.loss, iterations=500, **common))

    def chunks(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Dataset, np.ndarray | None]]:
        """Requests in parts that share a filter: (rows, their histories, the items that they may be
        shown, or None).
        """
        keys = self.data.requests["filter"].to_numpy()[rows]
        for key in np.unique(keys):
            mine = rows[keys == key]
            for start in range(0, len(mine), CHUNK):
                part = mine[start : start + CHUNK]
                allowed = (
                    None
                    if key == 0
                    else np.intersect1d(self.items.external_ids, self.data.passing(int(key)))
                )
                if allowed is None or len(allowed):
                    yield part, asked(self.data, part, self.items), allowed

    def found(
        self, rows: np.ndarray, history: Dataset, allowed: np.ndarray | None, for_train: bool
    ) -> pd.DataFrame:
        return self.model._get_candidates_from_first_stage(
            rows, history, False, for_train, allowed, "ignore"
        )

    def others(
        self,
        rows: np.ndarray,
        history: Dataset,
        allowed: np.ndarray | None,
        at: np.ndarray,
        items: np.ndarray,
    ) -> pd.DataFrame:
        """Given candidates with what the generators say of them."""
        mine = pd.DataFrame({Columns.User: rows[at], Columns.Item: items})
        frame = mine.merge(
            self.found(rows, history, allowed, True), on=Columns.UserItem, how="left"
        )
        return self.model._process_ranks_and_scores(frame)

    def learn(self, reranker: CatBoostReranker, candidates_of: Callable[..., pd.DataFrame]) -> None:
        """Teach a reranker on W2a: candidates, targets, negatives, features, as the model's own
        `fit` does.
        """
        tables = []
        for rows, history, allowed in self.chunks(self.data.rows_in("W2a")):
            at, truth = self.data.truth(rows)
            targets = pd.DataFrame({Columns.User: rows[at], Columns.Item: truth})
            frame = self.model._set_targets_to_candidates(
                candidates_of(rows, history, allowed), targets
            )
            frame = self.model.sampler.sample_negatives(frame)
            tables.append(self.model.feature_collector.collect_features(frame, history, None))
        table = pd.concat(tables, ignore_index=True)
        if table[Columns.Target].nunique() < 2:
            raise SystemExit(
                "two stages: the reranker needs chosen and other candidates in W2a, found one kind"
            )
        reranker.fit(table)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        scores = np.full((len(rows), self.data.n_items), -np.inf, dtype=np.float32)
        for part, history, allowed in self.chunks(rows):
            got = self.model.recommend(
                part, history, self.data.n_items, False, allowed, on_unsupported_targets="ignore"
            )
            scores[np.searchsorted(rows, got[Columns.User]), got[Columns.Item].to_numpy()] = got[
                Columns.Score
            ]
        return scores

    def candidates(self, rows: np.ndarray, at: np.ndarray, items: np.ndarray) -> np.ndarray:
        if self.of_others is None:
            self.of_others = self.reranker()

            def given(rows: Any, history: Any, allowed: Any) -> Any:
                return self.others(rows, history, allowed, *self.data.candidates(rows))

            self.learn(self.of_others, given)
        scores = np.zeros(len(at), dtype=np.float32)
        for part, history, allowed in self.chunks(rows):
            here = np.flatnonzero(np.isin(rows[at], part))
            frame = self.others(
                part, history, allowed, np.searchsorted(part, rows[at[here]]), items[here]
            )
            scores[here] = self.of_others.predict_scores(
                self.model.feature_collector.collect_features(frame, history, None)
            )
        return scores


def fit(data: Data, seed: int, windows: list, **settings: Any) -> Scorer:
    warnings.simplefilter("ignore")
    return TwoStage(data, seed, windows, **settings)


if __name__ == "__main__":
    main(fit, TRIALS)
