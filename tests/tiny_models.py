"""Small models on disk, the same bytes on every machine of a run."""

import json
import os
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = ["amber", "birch", "coral", "thing", "model", "search", "lamp", "blue", "red", "soft", "small", "large"]


def write_sentence_encoder(folder: Path, **config: int) -> None:
    """A BERT of random weights with its WordPiece tokenizer, as sentence-transformers lays it out
    but for the pooling file, which may be absent.
    """
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = [c for x in "abcdefghijklmnopqrstuvwxyz0123456789" for c in (x, f"##{x}")]
    vocab = {word: i for i, word in enumerate(marks + WORDS + letters)}
    words = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 2, "max_position_embeddings": 64} | config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(BertConfig(vocab_size=len(vocab), **size))
    model.save_pretrained(folder)
    pad, unk, cls, sep = marks
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=pad, unk_token=unk, cls_token=cls, sep_token=sep
    ).save_pretrained(folder)


@cache
def sentence_encoder() -> str:
    """The folder of a small sentence encoder, one for all processes of a test run."""
    folder = Path(tempfile.gettempdir()) / f"karmafunnel-tests-{os.getuid()}" / "sentences-1"
    if not (folder / "tokenizer.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent))
        write_sentence_encoder(made)
        with suppress(OSError):  # another process was first
            made.rename(folder)
    return str(folder)


def write_vision_model(folder: Path) -> None:
    """A ViT of random weights with its image processor."""
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    size = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    ViTModel(ViTConfig(image_size=32, patch_size=16, **size)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def write_gguf(
    file: Path, architecture: str = "llama", without: tuple[str, ...] = (), **told: int
) -> None:
    """A Llama of random weights with a byte-pair tokenizer as a GGUF file, its matrices in Q4_1.
    `without`: tensors that are left out; told: what the head says of its sizes instead.
    """
    import gguf
    import numpy as np
    from karmafunnel.models.karma.backbone import byte_pairs

    tokenizer = byte_pairs([" ".join(WORDS)] * 5, 320)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    words[0] = "<|endoftext|>"  # which transformers would add
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    dim, heads, mlp, layers = 64, 2, 96, 3
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(told.get("dim", dim))
    writer.add_block_count(told.get("layers", layers))
    writer.add_feed_forward_length(mlp)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(dim // heads)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([3] + [1] * (len(words) - 1))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    rng = np.random.default_rng(0)

    def add(name: str, x: np.ndarray, **kind: Any) -> None:
        if name not in without:
            writer.add_tensor(name, x, **kind)

    def matrix(name: str, rows: int, columns: int) -> None:
        kind = gguf.GGMLQuantizationType.Q4_1
        x = gguf.quants.quantize(rng.normal(0, 0.1, (rows, columns)).astype(np.float32), kind)
        add(name, x, raw_dtype=kind)

    matrix("token_embd.weight", len(words), dim)
    add("output_norm.weight", np.ones(dim, dtype=np.float32))
    for i in range(layers):
        for part in ("q", "k", "v", "output"):
            matrix(f"blk.{i}.attn_{part}.weight", dim, dim)
        for part, shape in (("gate", (mlp, dim)), ("up", (mlp, dim)), ("down", (dim, mlp))):
            matrix(f"blk.{i}.ffn_{part}.weight", *shape)
        for part in ("attn", "ffn"):
            add(f"blk.{i}.{part}_norm.weight", np.ones(dim, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
