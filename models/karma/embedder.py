"""KARMA as an Embedder: pre-train (or open) a language model, fine-tune it, embed."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import KarmafunnelError
from ...files import check
from ...log import Log
from ..diagnostics import alignment, attention_figures
from ..embedders import (
    Cooccurrence,
    Embedder,
    Embedding,
    Progress,
    Sequences,
    known_in_w1,
    read_saved,
    silent,
    unit_rows,
    w1_sequences,
)
from ..training import Snapshot, part, put_weights, seeded
from .backbone import LM, causal, pooled
from .config import KarmaConfig
from .losses import Autoregressive, BagOfWords, Masked, each_text, text_logits
from .network import Network
from .sequences import Batch, lay_out, request_texts, serving_trees
from .train import (
    Beside,
    Examples,
    Features,
    Probe,
    Trainee,
    Trainer,
    asked_words,
    checkpoint_folder,
    places_of,
    whitening,
    word_ids,
)
from .visual import visual_features

ROWS = 128  # requests whose texts are predicted at a time
CHUNK = 4096  # requests whose histories are held at a time
WIDTH = 16  # cells: requests are padded to a multiple of it
# rows of a batch: the products of a wide model are fast with few, so that little is padded; the
# time of a narrow one goes into calls
NARROW, NARROW_ROWS, WIDE_ROWS = 256, 64, 8
READ = 8  # words that a bag-of-words reading shows


# -- KARMA -----------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class KARMA(KarmaConfig, Embedder):
    __doc__ = KarmaConfig.__doc__

    def fit(
        self,
        log: Log,
        seed: int = 0,
        progress: Progress = silent,
        device: str = "cpu",
        cache: Path | None = None,
    ) -> KarmaEmbedding:
        """Pre-train or open the backbone, fine-tune it on W1, embed every item; each step is kept
        in `cache` and goes on there.

        Raises:
            KarmafunnelError: W1 has no click or purchase; no item has text; no target of W1 has
                what an objective tells; the model's context is too short for `length`,
                `query_words` and `text_words` together, or it has fewer layers than `trained`;
                `gen`, or `rec` with `decoder="lm"`, is asked of a model that was cut to its first
                layers and that no language training has healed; a loss is no number (names the
                step); or the backbone, `visual` or `beside` cannot be had.
            LostProcessError: one of several processes that train together has ended.
        """
        return self.fitted(log, seed, progress, device, cache).embedding

    def fitted(
        self, log: Log, seed: int, progress: Progress, device: str, cache: Path | None
    ) -> Fit:
        """What `fit` makes, with what it is made of."""
        base = self.backbone.ready(log, cache, progress, device)
        # BOS, [INT], BOS
        base.must_hold(self.length + self.query_words + self.text_words + 3, repr(self))
        self.must_speak(base)
        features = self.features(log, base, cache, seed, progress, device)
        trainee, folder = self.trainee(log, base, features, seed, cache)
        trainer = Trainer(trainee, seed, folder, progress)
        facts = {
            "backbone": base.facts,
            "base": base_attention(base, features),
            **trainer.run(),
            "seed": seed,
        }
        progress("KARMA: embedding the items")
        network = trainee.network
        number = places_of(trainee.examples.candidates, log.n_items)
        vectors = item_vectors(self, trainee, features, number)
        network.use(network.lm.merged())
        embedding = KarmaEmbedding(
            self, self, log, network.eval(), vectors, facts, trainee.decoders(), features.beside
        )
        embedding.learn_prior(trainee.examples.trees.request)
        return Fit(base, features, trainee, embedding)

    def must_speak(self, base: LM) -> None:
        """Raises KarmafunnelError where a decoder reads the last layer of a model that was cut, and
        no language training has healed it.
        """
        asked = {"gen": self.gen, 'rec with decoder="lm"': self.rec and self.decoder == "lm"}
        decoders = [name for name, weight in asked.items() if weight]
        if base.speaks or not decoders:
            return
        needs = "a model with all of its layers, or LanguageFirst(...) around it"
        perplexity = base.facts["text perplexity"]
        if trained := base.facts.get("language"):
            needs = "all of its layers, or more `tokens` of language training, to half of chance"
            perplexity = trained["perplexity_after"]
        raise KarmafunnelError(
            f"{self!r}",
            what=" and ".join(decoders),
            needs=needs,
            found=f"its first {base.facts['layers']} layers, whose text perplexity is "
            f"{perplexity:,g} (chance: {base.vocab:,})",
        )

    def trainee(
        self, log: Log, base: LM, features: Features, seed: int, cache: Path | None
    ) -> tuple[Trainee, Path | None]:
        """What is trained, before its first step, and where its checkpoints lie."""
        lm = base.fresh()
        examples = Examples.of(log, lm, self, seed)
        with seeded(seed):
            n_ids = len(examples.candidates) if self.ids else 0
            d_visual = 0 if features.visual is None else features.visual.shape[1]
            network = Network(
                lm,
                self.dim,
                features.text.shape[1],
                d_visual,
                n_ids,
                self.dropout,
                1 / self.loss.temperature,
                self.residual,
                width_of(features.beside),
                self.loss.unit,
                self.generator,
            )
            if self.warm and self.ids:
                met = meeting_vectors(log, examples, self.dim, seed)
                network.ids.data.copy_(torch.from_numpy(met))
            asked = None
            if features.beside:
                asked = asked_words(features.beside, log, examples.trees.request)
            probe = Probe.of(log, lm, self, examples, features) if self.watch else None
            trainee = Trainee(self, network, examples, features, seed, asked, probe)
        # a fit of more epochs goes on from one of fewer, but for a schedule over all of them
        plain = self if self.schedule != "constant" else replace(self, epochs=KARMA.epochs)
        how, digest = repr(plain), features.digest()
        return trainee, checkpoint_folder(cache, self, how, log, seed, base, digest, __name__)

    def features(
        self,
        log: Log,
        base: LM,
        cache: Path | None,
        seed: int,
        progress: Progress,
        device: str,
        like: Features | None = None,
    ) -> Features:
        """Frozen features of the log's items, put to scale over those known in W1, or as those of
        another log are (`like`).
        """
        texts = log.item_text()
        if not any(text.strip() for text in texts):
            raise KarmafunnelError(
                f"{self!r}",
                needs="item text (title, brand, category, attributes)",
                found=f"none in log {log.name}",
            )
        progress(f"KARMA: reading the texts of {len(texts)} items")
        words, n_words = base.encode(texts, self.text_words)
        known = known_in_w1(log)
        raw = pooled(base, texts, self.text_words)
        mean, turn = whitening(raw[known & (n_words > 0)]) if like is None else like.norm
        text = (raw - mean) @ turn * (n_words > 0)[:, None]
        if like is None:
            fits: Beside = tuple(x.fit(log, seed, progress, device, cache) for x in self.beside)
        else:
            fits = tuple(x.of(log) for x in like.beside)
        text = np.concatenate([text, *(x.items() for x in fits)], axis=1)
        visual = seen = None
        if self.visual is not None:
            raw, seen = visual_features(log, self.visual, cache, seed, progress, device)
            shift, scale = whitening(raw[known & seen])
            visual = (raw - shift) @ scale * seen[:, None]
        # nothing to start from
        if not np.any(text) and visual is None and not (self.ids and self.warm):
            raise KarmafunnelError(
                f"{self!r}",
                needs="item texts that differ",
                found=f"the same in all of log {log.name}",
            )
        return Features(text, visual, seen, words, n_words, (mean, turn), fits)

    def load(self, folder: Path | str, log: Log) -> KarmaEmbedding:
        return self.opened(self, folder, log)

    def moved(
        self,
        value: Embedder,
        there: Log,
        log: Log,
        seed: int,
        progress: Progress,
        device: str,
        cache: Path | None,
    ) -> KarmaEmbedding:
        """What is trained on the log `there`, for the items and users of `log`, as of `value`."""
        fit = self.fitted(there, seed, progress, device, cache)
        here = self.features(log, fit.base, cache, seed, progress, device, fit.features)
        unknown = np.full(log.n_items, -1, dtype=np.int64)
        vectors = item_vectors(self, fit.trainee, here, unknown)
        trained = fit.embedding
        return KarmaEmbedding(
            value,
            self,
            log,
            trained.network,
            vectors,
            trained.facts,
            trained.decoders(),
            here.beside,
        )

    def opened(self, value: Embedder, folder: Path | str, log: Log) -> KarmaEmbedding:
        """A saved embedding of `value`, whose settings are these."""
        tensors, description = read_saved(value, folder, log, "vectors")
        vectors = tensors.pop("vectors")
        lm = LM.rebuild(description["extras"].get("lm"), f"{folder}/embedding.json: lm")
        beside: Beside = tuple(
            x.load(Path(folder) / f"beside-{i}", log) for i, x in enumerate(self.beside)
        )
        network = Network(
            lm,
            self.dim,
            1,
            0,
            0,
            self.dropout,
            1 / self.loss.temperature,
            self.residual,
            width_of(beside),
            self.loss.unit,
            self.generator,
        )
        weights = {k: torch.from_numpy(v) for k, v in tensors.items()}
        put_weights(network, weights, str(folder), not_served(network))
        facts = description["facts"]
        return KarmaEmbedding(
            value, self, log, network.eval(), vectors, facts, None, beside, Path(folder)
        )


def width_of(beside: Beside) -> int:
    """Length of what a query brings through the embedders `beside`: 0 without any."""
    return sum(x.items().shape[1] for x in beside)


def not_served(network: Network) -> tuple[str, ...]:
    """How the names of weights begin that make item vectors, or words: serving needs neither."""
    head = network.lm.model.get_output_embeddings()
    heads = [f"{name}." for name, module in network.named_modules() if module is head]
    return ("ids", "text.", "visual.", *heads)


def base_attention(lm: LM, features: Features) -> dict[str, float]:
    """Attention sinks and column entropy of the model before fine-tuning, on concatenated item
    texts as in its pre-training.
    """
    rows = np.flatnonzero(features.n_words > 0)[:512]
    stream = np.concatenate([np.r_[lm.bos, features.words[i, : features.n_words[i]]] for i in rows])
    length = min(48, len(stream), lm.context or 48)
    whole = stream[: len(stream) // length * length].reshape(-1, length)
    ids = torch.from_numpy(whole[:64]).to(lm.device)
    there = torch.ones_like(ids, dtype=torch.bool)
    return attention_figures(lm.attentions(lm.embed_tokens(ids), *causal(there)), there)


def meeting_vectors(log: Log, examples: Examples, dim: int, seed: int) -> np.ndarray:
    """Unit co-occurrence vectors of the candidates among the training users: float32 (m, dim),
    zeros for items without co-occurrences.
    """
    events = w1_sequences(log, "KARMA(warm=True)")
    mine = np.isin(events.user, log.user[examples.trees.request])
    events = Sequences(*(getattr(events, f.name)[mine] for f in fields(Sequences)))
    counts = Cooccurrence(dim=dim, weighting="ppmi")
    vectors = counts.vectors(counts.affinity(events, log.n_items), seed)[0]
    return unit_rows(vectors)[examples.candidates]


@torch.inference_mode()
def item_vectors(
    config: KARMA, trainee: Trainee, features: Features, number: np.ndarray
) -> np.ndarray:
    """Vectors of all items of the log, (n_items, dim), of length 1 unless the loss is on plain
    inner products; zeros where an item has neither text, image nor id.
    """
    network = trainee.network
    out = np.zeros((len(number), network.dim), dtype=np.float32)
    for start in range(0, len(number), 4096):
        rows = slice(start, start + 4096)
        text = trainee.on(features.text[rows])
        if config.items == "trained":
            text = trainee.read_text(features.words[rows], features.n_words[rows])
        visual = None if features.visual is None else trainee.on(features.visual[rows])
        ids = None
        if len(network.ids):
            mine = trainee.on(number[rows])
            ids = network.ids[mine.clamp(min=0)] * (mine >= 0)[:, None]
        out[rows] = network.mix(text, visual, ids).float().cpu().numpy()
    return unit_rows(out) if network.unit else out


def tells(lm: LM) -> Tensor:
    """Boolean mask over the vocabulary, (vocab,): word-initial tokens of at least three letters
    (all tokens if none qualifies).
    """
    found = torch.zeros(lm.vocab, dtype=torch.bool)
    for i in range(lm.vocab):
        name = lm.tokenizer.id_to_token(i) or ""
        found[i] = name[:1] in ("Ġ", "▁") and len(name) > 3 and name[1:].isalpha()
    return found if found.any() else torch.ones(lm.vocab, dtype=torch.bool)


class KarmaEmbedding(Embedding):
    """Item and user embeddings, of length 1 unless the loss is on plain inner products; decoders
    stay on disk until a user embedding is decoded. `config`: the settings, those of `value` unless
    it wraps another.
    """

    asks = ("query", "filters")
    online = True

    def __init__(
        self,
        value: Embedder,
        config: KARMA,
        log: Log,
        network: Network,
        vectors: np.ndarray,
        facts: dict[str, Any],
        decoders: dict[str, Tensor] | None,
        beside: Beside = (),
        folder: Path | None = None,
    ):
        super().__init__(value, log, facts)
        self.config, self.network, self.vectors, self.beside = config, network, vectors, beside
        self._decoders, self._folder = decoders, folder
        self._x = torch.from_numpy(vectors).to(network.lm.device)

    def items(self) -> np.ndarray:
        return self.vectors

    def batch(
        self, requests: np.ndarray, texts: list[np.ndarray | None] | None = None, past: bool = True
    ) -> Batch:
        """Cells of requests, one tree each, without their history where `past` is False; always as
        wide: a vector does not hang on its batch.
        """
        config, lm = self.config, self.network.lm
        queries = word_ids(lm, request_texts(self.log, requests), config.query_words)
        trees = serving_trees(self.log, requests, config.length if past else 0)
        width = config.length + config.query_words + 2
        return lay_out(trees, np.arange(len(requests)), queries, lm.bos, texts, width).to(
            str(lm.device)
        )

    @torch.inference_mode()
    def interests(self, requests: np.ndarray, past: bool = True) -> np.ndarray:
        """User embeddings of requests given as row numbers, float32 (len(requests), dim), of length
        1 where the loss is `unit`; without what the user did before where `past` is False.
        """
        out = np.zeros((len(requests), self.config.dim), dtype=np.float32)
        for start in range(0, len(requests), CHUNK):
            out[start : start + CHUNK] = self.embedded(requests[start : start + CHUNK], past)
        return out

    def embedded(self, requests: np.ndarray, past: bool) -> np.ndarray:
        """`interests` of some requests. Those of similar length are read together: what a batch
        looks like follows from the model and the request, so that a vector does not depend on the
        others.
        """
        config, lm, device = self.config, self.network.lm, self._x.device
        texts = request_texts(self.log, requests)
        queries = word_ids(lm, texts, config.query_words)
        trees = serving_trees(self.log, requests, config.length if past else 0)
        # BOS, [INT]
        cells = trees.size + np.array([len(words) for words in queries], dtype=np.int64) + 2
        widths = np.minimum(-(-cells // WIDTH) * WIDTH, config.length + config.query_words + 2)
        asked = None
        if self.beside:
            asked = torch.from_numpy(asked_words(self.beside, self.log, requests)).to(device)
        rows = NARROW_ROWS if lm.dim <= NARROW else WIDE_ROWS
        out = np.zeros((len(requests), config.dim), dtype=np.float32)
        for width in np.unique(widths):
            alike = np.flatnonzero(widths == width)
            for start in range(0, len(alike), rows):
                part = alike[start : start + rows]
                filled = np.concatenate([part, np.repeat(part[-1:], rows - len(part))])
                some = [queries[i] for i in filled]
                batch = lay_out(trees, filled, some, lm.bos, None, int(width)).to(str(lm.device))
                words = None if asked is None else asked[torch.from_numpy(filled).to(device)]
                hidden = self.network(batch, self._x)
                z = self.network.z(hidden, batch, self._x, words)
                if self.network.generator is not None:
                    noise = self.noise(requests[filled]).to(z.device)
                    asks = self.network.asking(hidden, batch)
                    z = self.network.to_length(self.network.generator.sample(z, noise, asks))
                out[part] = z.float().cpu().numpy()[: len(part)]
        return out

    def noise(self, requests: np.ndarray) -> Tensor:
        """Standard normal noise that a generator starts from, a function of a request's user and
        time alone: (B, dim).
        """
        asked = self.log.requests[requests].select("user_id", "ts").iter_rows()
        rows = []
        for user, ts in asked:
            seed = hashlib.sha256(f"{user} {ts!r}".encode()).digest()[:8]
            rng = np.random.default_rng(int.from_bytes(seed, "little"))
            rows.append(rng.standard_normal(self.config.dim, dtype=np.float32))
        return torch.from_numpy(np.stack(rows))

    def queries(self, requests: np.ndarray) -> np.ndarray:
        """Interests of requests as if nothing had come before them, float32 (len(requests), dim),
        zeros without a query or filters; each text is read once.
        """
        texts = np.array(request_texts(self.log, requests), dtype=object).astype(str)
        asked, first, inverse = np.unique(texts, return_index=True, return_inverse=True)
        return (self.interests(requests[first], past=False) * (asked != "")[:, None])[inverse]

    def tensors(self) -> dict[str, np.ndarray]:
        apart = not_served(self.network)
        serving = {k: v for k, v in self.network.state_dict().items() if not k.startswith(apart)}
        found = {"vectors": self.vectors}
        found |= {name: x.float().cpu().numpy() for name, x in serving.items()}
        return found

    def extras(self) -> dict[str, Any]:
        return {"lm": self.network.lm.describe()}

    # -- reading and diagnosing, with what serving does without ------------------------------------

    def save_more(self, folder: Path) -> None:
        for i, embedding in enumerate(self.beside):
            embedding.save(folder / f"beside-{i}")
        head = self.network.lm.own_head
        kept = dict(self.decoders())
        if head is not None:
            kept |= {f"head.{name}": x for name, x in head.state_dict().items()}
        if kept:
            Snapshot(kept, {}).write(folder / "decoders.safetensors")

    def decoders(self) -> dict[str, Tensor]:
        """Weights of the decoders by name, read from disk on the first call; empty where the fit
        had none.

        An LM head of its own, which tells words as they do, is put in its place. Raises
        KarmafunnelError for a file that is torn, and where such a head is not in it: it would tell
        at random.
        """
        if self._decoders is None:
            file = self._folder / "decoders.safetensors" if self._folder else None
            found = Snapshot({}, {}, file)
            if file and file.exists():
                check(file.parent, file.name)
                found = Snapshot.read(file)
            if (head := self.network.lm.own_head) is not None:
                put_weights(head, found.part("head"), str(file))
            self._decoders = {k: x for k, x in found.tensors.items() if not k.startswith("head.")}
        return self._decoders

    def reader(self) -> BagOfWords | Autoregressive | None:
        """The decoder that tells an interest in words, None where none was trained."""
        weights = part(self.decoders(), "rec")
        if not weights or self.config.decoder == "masked":
            return None
        kind = BagOfWords if self.config.decoder == "bow" else Autoregressive
        decoder: BagOfWords | Autoregressive = kind(self.network.lm, self.config.dim)
        put_weights(decoder, weights, f"{self.value!r}: decoders")
        return decoder.to(self.network.lm.device).eval()

    @torch.inference_mode()
    def read(self, requests: np.ndarray, quick: bool = False) -> list[str] | None:
        """The target's text as `rec` reconstructs it from the interest alone; None where the fit
        had no decoder that tells.

        From a bag of words: the words that gain most over what requests of W1 say on average. The
        LM as a decoder tells whole texts, token by token, which is not quick.
        """
        decoder = self.reader()
        if decoder is None or (quick and isinstance(decoder, Autoregressive)):
            return None
        lm = self.network.lm
        z = self.network.direction(torch.from_numpy(self.interests(requests)).to(lm.device))
        if isinstance(decoder, Autoregressive):
            return decoder.read(lm, z, self.config.text_words)
        log_p = torch.log_softmax(decoder.logits(lm, z), dim=-1)
        if "prior" not in self.decoders():
            raise KarmafunnelError(
                f"{self.value!r}",
                needs="the prior of words beside the decoder",
                found=f"{sorted(self.decoders())[:5]}",
            )
        gain = log_p - self.decoders()["prior"].to(z.device)
        # a rare word gains on noise alone
        likely = (log_p > math.log(2 / lm.vocab)) & tells(lm).to(z.device)
        best = gain.masked_fill(~likely, -torch.inf).topk(READ, dim=1)
        readings = []
        for tokens, gains in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            words = []
            for token, more in zip(tokens, gains, strict=True):
                if more > 0:
                    words.append(lm.decode([token]).strip())
            readings.append(", ".join(words))
        return readings

    @torch.inference_mode()
    def learn_prior(self, requests: np.ndarray) -> None:
        """What a bag of words says on average of some requests of W1: a reading is what an interest
        says beyond that.
        """
        decoder = self.reader()
        if isinstance(decoder, BagOfWords):
            at = np.linspace(0, len(requests) - 1, min(len(requests), 1024)).astype(np.int64)
            lm, some = self.network.lm, np.sort(requests)[at]
            z = self.network.direction(torch.from_numpy(self.interests(some)).to(lm.device))
            log_p = torch.log_softmax(decoder.logits(lm, z), dim=-1)
            self.decoders()["prior"] = log_p.mean(dim=0)

    def attention(self, requests: np.ndarray) -> tuple[Tensor, Tensor]:
        """Attention weights (layers, B, heads, L, L) over the cells of requests, and which cells
        there are (B, L).
        """
        if not len(requests):
            raise KarmafunnelError(f"{self.value!r}: attention", needs="requests", found="none")
        batch = self.batch(requests)
        with torch.inference_mode():
            cells = self.network.cells(batch, self._x)
        width = int((batch.kind > 0).sum(dim=1).max())
        mask = batch.mask[..., :width, :width]
        maps = self.network.lm.attentions(cells[:, :width], mask, batch.position[:, :width])
        return maps, (batch.kind > 0)[:, :width]

    def attention_map(self, requests: np.ndarray) -> np.ndarray | None:
        """Mean over heads and over the requests with the longest histories, all of one length:
        (layers, L, L).
        """
        size = serving_trees(self.log, requests, self.config.length).size
        maps, there = self.attention(requests[size == size.max(initial=0)][:64])
        width = int(there.sum(dim=1).min())
        return maps.mean(dim=(1, 2))[:, :width, :width].float().cpu().numpy()

    def diagnose(self, requests: np.ndarray, users: np.ndarray | None = None) -> dict[str, Any]:
        """Beside the vectors' shape: alignment with targets, sinks (the base's beside them),
        perplexity of targets' texts given the history and, where the fit has a decoder, given the
        interest alone, that of targets which W1 never had apart from all.

        requests (n,): row numbers; users (n, dim): their user embeddings, where they are known.
        Raises KarmafunnelError where there are no requests.
        """
        if not len(requests):
            raise KarmafunnelError(f"{self.value!r}: diagnosis", needs="requests", found="none")
        users = self.interests(requests) if users is None else users
        out = super().diagnose(requests, users)
        chosen = dict(self.log.events.select("request", "item").iter_rows())
        there = np.array([int(r) in chosen for r in requests], dtype=bool)
        told = requests[there]
        goal = np.array([chosen[int(r)] for r in told], dtype=np.int64)
        z, target = users[there], self.vectors[goal]
        if not self.network.unit:  # what is asked of directions
            z, target = unit_rows(z), unit_rows(target)
        out["alignment"] = alignment(z, target)
        past = serving_trees(self.log, requests, self.config.length).size
        out |= attention_figures(*self.attention(requests[np.argsort(-past, kind="stable")[:64]]))
        out |= {f"base {name}": value for name, value in self.facts["base"].items()}
        return out | self.perplexities(told[:1024], goal[:1024], z[:1024])

    @torch.inference_mode()
    def perplexities(
        self, requests: np.ndarray, goal: np.ndarray, z: np.ndarray
    ) -> dict[str, float]:
        """exp of nats a token of the targets' texts, given the history (LM head) and given the
        interest (own decoder).

        requests (n,): row numbers; goal (n,): rows of the log's items, a target each; z (n, dim):
        interests at length 1.

        The decoder read the texts of W1's targets as it was trained; "unseen" are the others, which
        it cannot know by heart.
        """
        lm, config = self.network.lm, self.config
        texts = self.log.item_text()
        ids, lengths = lm.encode([texts[i] for i in goal], config.text_words)
        total = count = 0.0
        kinds = {"bow": BagOfWords, "masked": Masked, "lm": Autoregressive}
        decoder = kinds[config.decoder](lm, config.dim)
        weights = part(self.decoders(), "rec")
        if weights:
            put_weights(decoder, weights, f"{self.value!r}: decoders")
        generator, alone, unseen = torch.Generator().manual_seed(0), [], []
        new = ~np.isin(goal, w1_sequences(self.log, repr(self.value)).item)
        for start in range(0, len(goal), ROWS):
            rows = slice(start, start + ROWS)
            told = zip(ids[rows], lengths[rows], strict=True)
            words: list[np.ndarray | None] = [x[:n] for x, n in told]
            batch = self.batch(requests[rows], words)
            assert batch.text is not None
            hidden = self.network(batch, self._x)
            logits, tokens, there = text_logits(lm, hidden, batch.text, batch.word)
            nats = each_text(logits, tokens, there) * there.sum(dim=1)
            total += float(nats.sum())
            count += int(there.sum())
            if weights:
                given = z[rows], ids[rows], np.arange(ids.shape[1]) < lengths[rows, None]
                interest, text, present = (torch.from_numpy(x).to(lm.device) for x in given)
                nats = decoder.to(lm.device)(lm, interest, text, present, generator)
                some = present.any(dim=1)
                alone += nats[some].tolist()
                unseen += new[rows][some.cpu().numpy()].tolist()
        out = {"perplexity given history": math.exp(min(total / count, 50)) if count else math.nan}
        if alone:
            out["perplexity given interest"] = math.exp(np.mean(alone))
        if any(unseen):
            out["perplexity given interest, unseen"] = math.exp(np.mean(np.array(alone)[unseen]))
        return out


@dataclass(frozen=True, eq=False)
class Fit:
    """An embedding and what it is made of: the language model before fine-tuning, the frozen
    features of the log's items, and what was trained.
    """

    base: LM
    features: Features
    trainee: Trainee
    embedding: KarmaEmbedding
