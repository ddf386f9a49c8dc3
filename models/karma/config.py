"""The settings of KARMA, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ...bounds import needs
from ...errors import KarmafunnelError
from ..embedders import TfidfSVD
from .action import ActionLoss, InBatch, Softmax
from .backbone import Qwen
from .checkpoint import Checkpoint
from .frozen import FrozenText
from .language import LanguageFirst
from .losses import Masked
from .visual import Column, Pretrained, SelfSupervised
from .visual_losses import Diffusion, Direct, FlowMatching, VectorLoss


@dataclass(frozen=True, repr=False)
class KarmaConfig:
    """A language model fine-tuned to one next-interest embedding whose meaning stays readable
    (arXiv 2603.22779).

    The loss is `action * L_act + gen * L_gen + rec * L_rec + see * L_see`. With gen = rec = see = 0
    this is the action-only control. [K] is known from the paper's abstract, [R] said by a public
    reading of the paper, [I] inferred, [O] ours.

    - L_act [K; R: pairwise logistic, ours by default a softmax]: the target's score against those
      of other items, as `loss` says.
    - L_gen [K]: the language model generates the target's text after the history.
    - L_rec [K; R: by the same language model, with the same weight as L_gen]: a decoder generates
      the target's text from the user embedding alone.
    - L_see [K; R: by diffusion or flow matching, which helps]: a head predicts the target's
      frozen visual features.

    AdamW at a constant rate, gradients clipped at norm 1; an exponential moving average of the
    weights is kept.

    Args:
        backbone: `Qwen(...)`, pre-trained on the texts of the log, `Checkpoint(...)`, or either of
            them in `LanguageFirst(...)`, trained further on histories told in words.
        dim: size of item vectors and user embeddings.
        items: "frozen": item text vectors are those of the model before fine-tuning; "trained":
            those of the model in training, which needs a loss among the batch.
        text_words, query_words: tokens read of an item and of a query.
        visual: where frozen visual features come from, or None.
        ids, id_dropout: whether items also have an id embedding, and the chance to leave it out.
        warm: [O] id embeddings start at co-occurrence vectors of W1, as those of SASRec do.
        residual: [O] the decayed mean of the history's item vectors is added to the user embedding,
            with learnt weight and decay.
        beside: [O] frozen embedders of text, such as `(TfidfSVD(dim=128), SentenceEncoder())`.
            Their item vectors are added to the text vectors, their query vectors to the user
            embedding through a learnt map. TF-IDF keeps single words, which a mean of hidden states
            blurs; a sentence encoder knows which texts mean the same.
        length: items of history that are read.
        loss: L_act: `Softmax()` over cosine / temperature among all items that are a target in W1
            [I]; `InBatch(logq=True)`, the same among the targets of the batch [I]; `Pairwise()`,
            pairwise logistic on plain inner products, as a public reading of the paper prints it,
            or `Pairwise(cosine=True)` on cosine / temperature; `MaskedNCE(mask=0.99)`, a control
            that can lose its negatives [O]. Each takes `hard`, the shown items without a click that
            are added as negatives, their `hard_weight`, and the `temperature` at the start.
        action, gen, rec, see: weights of the losses; 0 leaves one out.
        decoder: of L_rec: "bow" (words through the LM head), "masked" (one layer, most words
            masked) or "lm" (the language model itself). L_rec and L_gen are exact cross entropies
            over the whole vocabulary.
        see_by: how L_see predicts the features from the user embedding: `Direct()` by mean squared
            error, `Cosine()`, `Diffusion(steps=50)` or `FlowMatching(steps=16)`; with
            `history=True` from the last hidden state as well. The last two are the paper's [R].
        generator: a control: the user embedding is regressed by `Direct()`, which is autoregression
            with MSE, or drawn by `Diffusion()` or `FlowMatching()`, from what would be the
            embedding without it. L_act is then the error to the target's item vector, and item
            vectors stay as they start. In the paper diffusion fails here [K]. None: the projection
            itself. `watch` shows the vectors that it starts from, not those that it makes.
        shuffled: [O] `gen`, `rec` and `see` get the text and features of another item, always the
            same one: a second task without meaning.
        schedule: of the weights of `gen`, `rec` and `see` over the steps of all epochs: "constant",
            "falling" from them to 0, or "rising" from 0 to them [O].
        trained: the last layers of the language model that are fine-tuned, so many, and nothing
            else of it; None for all of it, 0 for nothing. Projections, ids and decoders are always
            trained [O].
        dropout: chance that an element of a history's item token is 0 in training.
        rate: of AdamW, reached after 50 steps.
        weight_decay: of AdamW, for matrices; vectors and scalars have none.
        average: decay a step of the moving average; smaller in the first steps.
        epochs: passes over the training requests of W1.
        batch: pieces of user histories in a step, or an eighth of all of them where that is less.
        share: share of W1's users that are trained on.
        watch: every so many steps the fit writes diagnostics of its batch into `facts["watched"]`:
            losses, share of masked negatives, lengths, effective rank, participation ratio,
            uniformity; and, over a fixed sample of W1's requests, attention sinks and column
            entropy of each layer and the perplexity of the targets' texts given the history. 0 for
            never. Vectors are the same with and without it.
        chunk: pieces whose activations are held in memory at a time; 0 for the whole batch. The
            others are computed anew in the backward pass (activation checkpointing; with it,
            GradCache, Gao et al. 2021, arXiv 2101.06983), so a step costs a forward pass more. The
            loss is that of the whole batch, up to rounding, for losses among the batch, too.
        precision: "float32", or "bfloat16": the language model multiplies in bfloat16 (autocast);
            weights, optimiser and the action loss stay in float32.

    Raises KarmafunnelError for a value that is out of its bounds or of the wrong kind, and for
    settings that do not go together.
    """

    backbone: Qwen | Checkpoint | LanguageFirst = Qwen()  # noqa: RUF009  (a frozen value)
    dim: int = 128
    items: Literal["frozen", "trained"] = "frozen"
    text_words: int = 24
    query_words: int = 16
    visual: Column | Pretrained | SelfSupervised | None = None
    ids: bool = True
    id_dropout: float = 0.5
    warm: bool = True
    residual: bool = True
    beside: tuple[TfidfSVD | FrozenText, ...] = ()
    length: int = 20
    loss: ActionLoss = Softmax()  # noqa: RUF009
    action: float = 1.0
    gen: float = 0.0
    rec: float = 0.0
    decoder: Literal["bow", "masked", "lm"] = "bow"
    see: float = 0.0
    see_by: VectorLoss = Direct()  # noqa: RUF009
    generator: VectorLoss | None = None
    shuffled: bool = False
    schedule: Literal["constant", "falling", "rising"] = "constant"
    trained: int | None = None
    dropout: float = 0.1
    rate: float = 1e-3
    weight_decay: float = 0.01
    average: float = 0.99
    batch: int = 32
    epochs: int = 6
    share: float = 1.0
    watch: int = 0
    chunk: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        choices = {
            "items": ("frozen", "trained"),
            "decoder": ("bow", "masked", "lm"),
            "schedule": ("constant", "falling", "rising"),
            "precision": ("float32", "bfloat16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise KarmafunnelError(
                    "KARMA",
                    what=name,
                    needs=f"one of {allowed}",
                    found=repr(getattr(self, name)),
                )
        self.check_kinds()
        self.check_generator()
        needs(
            self,
            "action",
            "gen",
            "rec",
            "see",
            "weight_decay",
            "dim",
            "text_words",
            "query_words",
            "length",
            "batch",
            "epochs",
        )
        needs(
            self,
            "rate",
            "dropout",
            id_dropout=(0.0, 1.0),
            share=(1e-9, 1.0),
            watch=(0, None),
            chunk=(0, None),
        )
        needs(self, average=(0.0, 0.999999))
        if self.trained is not None:
            needs(self, trained=(0, None))
        if self.rec and self.decoder == "masked" and self.text_words > Masked.most:
            raise KarmafunnelError(
                "KARMA",
                what="decoder='masked'",
                needs=f"text_words of {Masked.most} or fewer",
                found=self.text_words,
            )
        if self.items == "trained" and self.loss.whole:
            raise KarmafunnelError(
                "KARMA",
                what="items='trained'",
                needs=f"a loss among the batch, such as loss={InBatch()!r}: "
                "the whole catalogue cannot be read at every step",
                found=repr(self.loss),
            )
        self.check_beside()
        if self.see and self.visual is None:
            raise KarmafunnelError(
                "KARMA", what=f"see={self.see}", needs="visual features", found="visual=None"
            )
        objectives = self.gen + self.rec + self.see
        if not self.action + objectives:
            raise KarmafunnelError(
                "KARMA", needs="an objective to learn by", found="action, gen, rec and see of 0"
            )
        if self.shuffled and not objectives:
            raise KarmafunnelError(
                "KARMA", what="shuffled", needs="gen, rec or see", found="0 for each of them"
            )

    def check_kinds(self) -> None:
        """Raise KarmafunnelError for a value that is of another kind than its field takes."""
        pictures = Column | Pretrained | SelfSupervised | None
        kinds: dict[str, tuple[Any, str]] = {
            "backbone": (
                Qwen | Checkpoint | LanguageFirst,
                f"{Qwen()!r}, Checkpoint(...) or LanguageFirst(...)",
            ),
            "loss": (
                ActionLoss,
                f"{Softmax()!r}, {InBatch()!r} or another action loss of models.karma",
            ),
            "see_by": (
                VectorLoss,
                f"{Direct()!r}, {FlowMatching()!r}, {Diffusion()!r} or Cosine()",
            ),
            "generator": (
                VectorLoss | None,
                f"None, {Direct()!r}, {Diffusion()!r}, {FlowMatching()!r} or Cosine()",
            ),
            "visual": (pictures, f"None, {SelfSupervised()!r}, Column(...) or Pretrained(...)"),
        }
        for name, (kind, wanted) in kinds.items():
            if not isinstance(found := getattr(self, name), kind):
                raise KarmafunnelError("KARMA", what=name, needs=wanted, found=repr(found))

    def check_beside(self) -> None:
        """Raise KarmafunnelError for what is no tuple of text embedders, or stands beside text that
        is trained.
        """
        found = self.beside
        if not isinstance(found, tuple) or not all(
            isinstance(x, TfidfSVD | FrozenText) for x in found
        ):
            raise KarmafunnelError(
                "KARMA",
                what="beside",
                needs=f"text embedders in a tuple, such as ({TfidfSVD()!r},)",
                found=repr(found),
            )
        if found and self.items != "frozen":
            raise KarmafunnelError(
                "KARMA: beside needs items='frozen': its vectors are not trained"
            )

    def check_generator(self) -> None:
        """Raise KarmafunnelError for a generator that does not go with the other settings."""
        if self.generator is None:
            return
        wrong = {
            "loss": (self.loss != Softmax(), "the default loss, whose place it takes"),
            "rec": (self.rec != 0, "rec=0: decoders would read what is not served"),
            "see": (self.see != 0, "see=0: decoders would read what is not served"),
        }
        for name, (here, wanted) in wrong.items():
            if here:
                raise KarmafunnelError(
                    "KARMA",
                    what=f"generator={self.generator!r}",
                    needs=wanted,
                    found=f"{name}={getattr(self, name)!r}",
                )
