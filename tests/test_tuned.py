"""The tuned sentence encoder: where it starts, what is trained, that it learns, and bad input."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from karmafunnel.errors import KarmafunnelError
from karmafunnel.log import Log
from karmafunnel.models.embedders import unit_rows
from karmafunnel.models.karma import (
    KARMA,
    Checkpoint,
    FrozenLM,
    InBatch,
    MaskedNCE,
    Pairwise,
    SentenceEncoder,
    Softmax,
    TunedEncoder,
    train,
)
from karmafunnel.models.karma.action import ActionLoss
from karmafunnel.models.karma.train import Examples
from karmafunnel.models.karma.tuned import Tuning
from karmafunnel.simulator.replay.recipe import load_recipe
from power_cut import power_cut
from shop import make_shop
from test_karma import save_checkpoint
from tiny_models import sentence_encoder

pytestmark = pytest.mark.slow

FROZEN = SentenceEncoder(sentence_encoder(), dim=8, length=8, decay=0.6, query_weight=2.0)
SMALL = TunedEncoder(FROZEN, trained=1, rate=1e-3, epochs=2, batch=8)


def learner_of(value: TunedEncoder, log: Log) -> Tuning:
    return value.learner(log, value.encoder.fit(log), 0)


@pytest.mark.parametrize("loss", [InBatch(), Pairwise(), MaskedNCE()], ids=repr)
def test_it_starts_as_the_frozen_encoder(loss: ActionLoss, shop: Log) -> None:
    frozen = FROZEN.fit(shop)
    tuned = replace(SMALL, loss=loss, rate=1e-12, map_rate=1e-12, epochs=1).fit(shop)
    asked = shop.requests_in("W3")
    assert unit_rows(tuned.items()) == pytest.approx(frozen.items(), abs=1e-4)
    if loss.unit:
        assert tuned.interests(asked) == pytest.approx(frozen.interests(asked), abs=1e-4)
    else:  # lengths are kept
        raw = frozen.model.vectors(shop.item_text(), FROZEN.text_words)
        assert tuned.items() == pytest.approx((raw - frozen.shift) @ frozen.turn, abs=1e-4)
    learnt = tuned.facts["learnt"]
    assert learnt == pytest.approx({"query_weight": 2.0, "history_weight": 1.0, "decay": 0.6})


@pytest.mark.parametrize("loss", [InBatch(), Pairwise()], ids=repr)
def test_a_step_reads_requests_as_they_are_served(loss: ActionLoss, shop: Log) -> None:
    value = replace(SMALL, loss=loss, rate=1e-12, map_rate=1e-12, epochs=1)
    learner = learner_of(value, shop)
    served = value.fit(shop)
    trees = learner.examples.trees
    pieces = np.arange(len(trees.start))
    branches, _ = trees.branches(pieces)
    z = learner.eval()(pieces, np.random.default_rng(0)).z.numpy()
    # a piece that is not a user's first holds less of the history than serving reads
    first = np.flatnonzero(trees.seen[branches] < FROZEN.length // 2)
    assert len(first) > 50
    wanted = served.interests(trees.request[branches[first]])
    assert z[first] == pytest.approx(wanted, abs=1e-4 * max(1.0, float(np.abs(wanted).max())))


@pytest.mark.parametrize("trained", [None, 0, 1, 2])
def test_only_the_layers_asked_for_get_a_gradient(trained: int | None, shop: Log) -> None:
    learner = learner_of(replace(SMALL, trained=trained), shop).train()
    step = learner(np.arange(6), np.random.default_rng(0))
    learner.total(step.losses, 0.0).backward()
    reached = {
        name for name, p in learner.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert {"turn", "mixing", "log_scale"} <= reached
    of_model = {name for name in reached if name.startswith("model.")}
    if trained is None:
        assert "model.embeddings.word_embeddings.weight" in of_model
    else:
        free = {f"model.encoder.layer.{1 - i}." for i in range(trained)}
        assert all(any(name.startswith(x) for x in free) for name in of_model)
        assert all(any(name.startswith(x) for name in of_model) for x in free)


LOSSES = [InBatch(), Pairwise(), Pairwise(cosine=True), MaskedNCE(), Softmax()]


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_what_is_bought_together_draws_near(loss: ActionLoss) -> None:
    """Titles say nothing of who likes an item: only clicks do."""
    shop = make_shop(60, 20, 700)
    numbers = np.random.default_rng(0).permutation(60)
    letters = "abcdefghijklmnopqrstuvwxyz"
    titles = [f"{letters[n % 26]} {letters[n // 26]}" for n in numbers]
    shop = Log.make(
        shop.items.with_columns(title=np.array(titles, dtype=object), attributes=None),
        shop.requests.with_columns(query=None, filters=None),
        shop.exposures,
        shop.meta,
    )
    trained = 0 if loss.whole else None
    value = TunedEncoder(FROZEN, loss=loss, trained=trained, rate=3e-3, epochs=12, batch=4)
    asked = shop.requests_in("W3")
    events = shop.events.filter(shop.events["request"].is_in(asked.tolist()))
    rows = np.searchsorted(asked, events["request"].to_numpy())
    goal = events["item"].to_numpy()

    def share_of_better(embedding) -> float:  # mean rank, .5 for chance
        score = embedding.interests(asked) @ embedding.items().T
        return float((score[rows] > score[rows, goal][:, None]).mean())

    frozen, tuned = (share_of_better(x.fit(shop)) for x in (value.encoder, value))
    # a map of random titles learns less than the encoder
    assert tuned < frozen - (0.03 if loss.whole else 0.1)


@pytest.mark.parametrize("value", [replace(SMALL, loss=Softmax(), trained=0), KARMA()], ids=repr)
def test_more_items_than_a_softmax_over_the_catalogue_reads(
    value: TunedEncoder | KARMA, shop: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "WHOLE", 20)
    with pytest.raises(KarmafunnelError, match=r"needs loss=InBatch\(\).*more than 20 items"):
        Examples.of(shop, FROZEN.fit(shop).model, value, 0)


def test_a_killed_fit_goes_on_bit_for_bit(shop: Log, tmp_path: Path) -> None:
    value = replace(SMALL, watch=3)
    whole = value.fit(shop, seed=2, cache=tmp_path / "whole")
    with power_cut(7):
        value.fit(shop, seed=2, cache=tmp_path / "cut")
    said: list[str] = []
    again = value.fit(shop, seed=2, progress=said.append, cache=tmp_path / "cut")
    assert any("TunedEncoder: goes on after epoch 0, step 6" in line for line in said)
    asked = shop.requests_in("W3")
    assert again.items().tobytes() == whole.items().tobytes()
    assert again.interests(asked).tobytes() == whole.interests(asked).tobytes()
    assert again.facts["watched"] == whole.facts["watched"] and whole.facts["watched"]
    more = replace(value, epochs=3).fit(shop, seed=2, progress=said.append, cache=tmp_path / "cut")
    assert any("goes on after epoch 2" in line for line in said)
    assert more.facts["epochs"] == 3


def test_an_interest_does_not_depend_on_its_batch(shop: Log) -> None:
    fitted = replace(SMALL, epochs=1).fit(shop)
    asked = shop.requests_in("W3")
    whole = fitted.interests(asked)
    alone = np.concatenate([fitted.interests(asked[i : i + 1]) for i in range(len(asked))])
    assert alone == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("loss", [InBatch(), Pairwise()], ids=repr)
def test_a_saved_one_reads_this_log_and_another(
    loss: ActionLoss, shop: Log, tmp_path: Path
) -> None:
    value = replace(SMALL, loss=loss, epochs=1)
    fitted = value.fit(shop)
    fitted.save(tmp_path / "kept")
    again = value.load(tmp_path / "kept", shop)
    asked = shop.requests_in("W3")
    assert again.interests(asked).tobytes() == fitted.interests(asked).tobytes()
    assert again.items().tobytes() == fitted.items().tobytes()
    other = make_shop(n_items=250, seed=5)
    moved = again.of(other)
    assert moved.items().shape == (250, 8) and moved.log is other and again.log is shop
    same = [i for i, text in enumerate(shop.item_text()) if text == other.item_text()[i]]
    assert len(same) > 100
    assert moved.items()[same] == pytest.approx(fitted.items()[same], abs=1e-6)
    length = np.linalg.norm(moved.interests(other.requests_in("W3")), axis=1)
    assert np.allclose(length[length > 0], 1, atol=1e-5) == loss.unit


def test_a_loss_that_is_no_number_stops_the_fit(shop: Log) -> None:
    with pytest.raises(KarmafunnelError, match=r"needs finite losses, found act .*epoch 1, step"):
        replace(SMALL, loss=Pairwise(), map_rate=1e9, epochs=50).fit(shop)


def test_bad_input(shop: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused = r"loss needs a loss among the batch.*Softmax.*trained=0"
    for trained in (1, None):
        with pytest.raises(KarmafunnelError, match=refused):
            TunedEncoder(FROZEN, loss=Softmax(), trained=trained)
    for wrong in (FrozenLM(), Checkpoint("smollm2-135m"), "minilm", None):
        with pytest.raises(KarmafunnelError, match="encoder needs SentenceEncoder"):
            TunedEncoder(wrong)  # type: ignore[arg-type]
    for field, value in (
        ("trained", -1), ("trained", 1.5), ("rate", -1.0), ("map_rate", -1.0), ("epochs", 0), ("batch", 0),
        ("share", 0.0), ("share", 1.1), ("average", 1.0), ("weight_decay", math.nan), ("watch", -1),
    ):  # fmt: skip
        with pytest.raises(KarmafunnelError, match=f"{field} needs"):
            replace(SMALL, **{field: value})
    with pytest.raises(KarmafunnelError, match="needs 3 layers to train, found 2"):
        replace(SMALL, trained=3).fit(shop)
    save_checkpoint(tmp_path / "causal", "llama")
    with pytest.raises(KarmafunnelError, match="needs a sentence encoder, found weights of Llama"):
        TunedEncoder(SentenceEncoder(str(tmp_path / "causal"))).fit(shop)


def test_each_loss_is_tried_as_often(shop: Log) -> None:
    table, trials = (load_recipe(f"karma_encoders{x}", shop) for x in ("", "_trials"))
    assert table.against in table.rows and trials.against in trials.rows
    kinds = [name.partition(", rate ")[0] for name in trials.rows if "rate" in name]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        name.removeprefix("tuned, "): 4 for name in table.rows if name.startswith("tuned, ")
    }


def test_a_share_of_the_users_is_trained_on(shop: Log) -> None:
    whole = learner_of(SMALL, shop).examples
    half = learner_of(replace(SMALL, share=0.5), shop).examples
    users = [len(np.unique(shop.user[x.trees.request])) for x in (whole, half)]
    assert users[1] == round(users[0] / 2)


def test_queries_are_read_by_the_encoder_in_training(shop: Log) -> None:
    learner = learner_of(SMALL, shop)
    assert len(learner.queries.ids) < len(learner.asks) == len(learner.examples.queries)
    for i in (0, 1, 2, 3, 5, 8):
        text = learner.asks[i]
        assert learner.examples.queries[i].tolist() == (
            learner.queries.ids[text, : learner.queries.lengths[text]].tolist()
        )
    z = learner(np.arange(4), np.random.default_rng(0)).z
    with torch.no_grad():
        learner.mixing[0] -= 20  # no weight on queries
    assert not torch.allclose(learner(np.arange(4), np.random.default_rng(0)).z, z)
