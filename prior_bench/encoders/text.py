"""Text encoders: any transformers encoder by hub name or local folder, or a small BERT trained from scratch.

A text is a sequence of sentences. Each is split into word pieces alone and they are joined with one [CLS] before and
one [SEP] behind, so that every word piece knows its sentence and special tokens belong to none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prior_bench.errors import UserError
from prior_bench.recipes import TextEncoderSpec

SMALL_BERT = "small-bert"
_SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
            "mask_token": "[MASK]"}
TOKENIZER_FILES = "the tokenizer: tokenizer.json, or vocab.json and merges.txt, vocab.txt, or spiece.model"
_REPORT = "No pneumothorax is seen. The heart is enlarged."
_MEMO = 100_000  # sentences


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text: word piece ids (L,), and the sentence and the word (L,) that each belongs to, -1 for special tokens.

    All int64; words are numbered through the whole text.
    """

    ids: np.ndarray
    sentence: np.ndarray
    word: np.ndarray


class TextEncoder(nn.Module):
    """A transformers encoder with its tokenizer. `forward` gives the last hidden states (B, L, width)."""

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int, plain_words: bool = False):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.width: int = model.config.hidden_size
        self.max_tokens = min(max_tokens, _positions(model) or max_tokens)
        self.plain_words = plain_words
        self.without_order = False  # every token at position 0, as MGCA's authors have it
        self._memo: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    @classmethod
    def build(cls, spec: TextEncoderSpec, texts: Iterable[str] | None = None,
              folder: Path | None = None) -> TextEncoder:
        """An encoder for `spec`: from `folder`, which `save` wrote (the weights are then random, to be loaded), else
        with a vocabulary from `texts` for "small-bert", else from the hub or the local folder that the spec names."""
        import transformers

        if folder is not None:
            config = _from_hub(transformers.AutoConfig, str(folder))
            model = _small_bert(config) if spec.name == SMALL_BERT else transformers.AutoModel.from_config(config)
            # by this class, not by the one in the folder's configuration, whose name depends on transformers' version
            tokenizer = _from_hub(transformers.PreTrainedTokenizerFast, str(folder))
        elif spec.name == SMALL_BERT:
            if texts is None:
                raise UserError("small-bert needs training reports to build its vocabulary from", where="text.name",
                                fix="pre-train on a dataset with reports, or give weights that bring their tokenizer")
            tokenizer = build_tokenizer(texts, spec.vocabulary)
            model = _small_bert(transformers.BertConfig(
                vocab_size=len(tokenizer), hidden_size=spec.width, num_hidden_layers=spec.layers,
                num_attention_heads=spec.heads, intermediate_size=4 * spec.width, pad_token_id=0,
                max_position_embeddings=spec.max_tokens, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
        else:
            tokenizer = _from_hub(transformers.AutoTokenizer, spec.name)
            check_tokenizer(tokenizer, spec.name)
            model, loading = _from_hub(transformers.AutoModel, spec.name, output_loading_info=True)
            _check_whole(model, loading["missing_keys"], spec.name)
            model = model.float()  # whatever the file's type is
            if spec.first_layers is not None:
                kept = _blocks(model)[: spec.first_layers]
                model.encoder.layer, model.config.num_hidden_layers = kept, len(kept)
        return cls(model, tokenizer, spec.max_tokens, spec.plain_words)

    def save(self, folder: Path) -> None:
        """Write the tokenizer and the model's configuration (not its weights) into a folder."""
        self.tokenizer.save_pretrained(folder)
        self.model.config.save_pretrained(folder)

    def tokens(self, sentences: Sequence[str]) -> Tokens:
        """Word pieces of one text, cut to `max_tokens`; sentences wholly beyond the cut disappear. (Byte-level
        vocabularies, as RoBERTa's, know a word inside a text by the space before it.)"""
        pieces = [self._pieces(f" {s}" if n else s) for n, s in enumerate(sentences)]
        ids = [i for own, _ in pieces for i in own]
        sentence = [n for n, (own, _) in enumerate(pieces) for _ in own]
        words = np.cumsum([0, *(own[-1] + 1 if own else 0 for _, own in pieces)])  # before each sentence
        word = [int(words[n]) + w for n, (_, own) in enumerate(pieces) for w in own]
        first, last = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        whole = ((ids, first, last), (sentence, -1, -1), (word, -1, -1))
        return Tokens(*(np.array([a, *part[: self.max_tokens - 2], z], np.int64) for part, a, z in whole))

    def pad(self, tokens: Sequence[Tokens]) -> dict[str, Tensor]:
        """Texts of different length as `ids`, `mask`, `sentence` and `word`, each (B, longest)."""
        longest = max(len(t.ids) for t in tokens)
        ids = np.full((len(tokens), longest), self.tokenizer.pad_token_id, np.int64)
        sentence, word = (np.full(ids.shape, -1, np.int64) for _ in range(2))
        mask = np.zeros(ids.shape, bool)
        for row, t in enumerate(tokens):
            own = slice(0, len(t.ids))
            ids[row, own], sentence[row, own], word[row, own], mask[row, own] = t.ids, t.sentence, t.word, True
        return {"ids": torch.from_numpy(ids), "mask": torch.from_numpy(mask), "sentence": torch.from_numpy(sentence),
                "word": torch.from_numpy(word)}

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        positions = {"position_ids": torch.zeros_like(ids)} if self.without_order else {}
        out: Tensor = self.model(input_ids=ids, attention_mask=mask.long(), **positions).last_hidden_state
        return out

    def layers(self, ids: Tensor, mask: Tensor, numbers: Sequence[int]) -> Tensor:
        """Hidden states after the layers of these numbers, 0 for the embeddings: (len(numbers), B, L, width). For BERT
        and its kin.

        Seen by hooks: transformers' own record of hidden states does not survive copying a model.
        """
        blocks = _blocks(self.model)
        states: dict[int, Tensor] = {}
        hooks = [blocks[number].register_forward_pre_hook(partial(_keep, states, number))
                 for number in set(numbers) if number < len(blocks)]
        try:
            states[len(blocks)] = self(ids, mask)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack([states[number] for number in numbers])

    def last_layers(self, ids: Tensor, mask: Tensor, layers: int) -> Tensor:
        """Hidden states of the last layers, the last one last: (layers, B, L, width)."""
        last = len(_blocks(self.model))
        return self.layers(ids, mask, range(last - layers + 1, last + 1))

    def with_class_attention(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Last hidden states (B, L, width) and the last layer's attention of the class token to each token (B, L),
        averaged over heads, without gradient."""
        before, last = self.last_layers(ids, mask, 2)
        with torch.no_grad():
            attention = _blocks(self.model)[-1].attention.self
            heads = attention.num_attention_heads
            query = attention.query(before[:, :1]).unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, 1, d)
            key = attention.key(before).unflatten(-1, (heads, -1)).transpose(1, 2)
            scores = (query @ key.mT).float().squeeze(2) / query.shape[-1] ** 0.5
            weights = scores.masked_fill(~mask.unsqueeze(1), float("-inf")).softmax(dim=-1)
        return last, weights.mean(dim=1)

    def freeze(self, layers: int) -> None:
        """Stop training the embeddings and the first `layers` layers; 0 leaves everything as it is."""
        if layers:
            for module in (self.model.embeddings, *_blocks(self.model)[:layers]):
                module.requires_grad_(False)

    def _pieces(self, sentence: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Word pieces of one sentence and the word that each belongs to; remembered, as sentences recur."""
        if sentence not in self._memo:
            if len(self._memo) >= _MEMO:
                self._memo.clear()
            text = plain(sentence) if self.plain_words else sentence
            encoded = self.tokenizer(text, add_special_tokens=False, verbose=False)
            self._memo[sentence] = tuple(encoded["input_ids"]), tuple(encoded.word_ids())
        return self._memo[sentence]


def _blocks(model: Any) -> Any:
    """The layers of BERT and its kin, which share BERT's names."""
    layers = getattr(getattr(model, "encoder", None), "layer", None)
    if layers is None:
        raise UserError(f"the method looks into the text encoder's layers, which {type(model).__name__} does not name "
                        "as BERT does", where="text.name", expected="BERT or its kin (RoBERTa, ELECTRA)")
    return layers


def _positions(model: Any) -> int | None:
    """Tokens that the table of positions serves; RoBERTa's begins behind the number of its padding token."""
    count: int | None = getattr(model.config, "max_position_embeddings", None)
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    first = getattr(table, "padding_idx", None)
    return count if count is None or first is None else count - first - 1


def _keep(states: dict[int, Tensor], number: int, block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    states[number] = inputs[0]


def plain(sentence: str) -> str:
    """Its words alone, of ASCII letters and digits in lower case: what GLoRIA's authors give to their tokenizer."""
    words = (word.encode("ascii", "ignore").decode() for word in re.findall(r"\w+", sentence.lower()))
    return " ".join(word for word in words if word)


def build_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A lower-casing WordPiece tokenizer with at most `vocabulary` entries; equal texts give an equal vocabulary.

    The trainer numbers the letters inside words in the random order of its hash table, and breaks ties between merges
    by number. So they are given to it in sorted order, as first entries, and the tokenizer is made from the result.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def tokenizer_of(model: Any) -> Any:
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer

    texts = list(texts)
    trained = tokenizer_of(models.WordPiece(unk_token="[UNK]"))
    words = {word for text in texts
             for word, _ in trained.pre_tokenizer.pre_tokenize_str(trained.normalizer.normalize_str(text))}
    first = [*_SPECIAL.values(), *sorted({f"##{letter}" for word in words for letter in word[1:]})]
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=first, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    tokenizer = tokenizer_of(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL)


def _small_bert(config: Any) -> nn.Module:
    """A BERT without its unused pooler. (Its dropout is 0: it costs a tenth of the time, and short runs need none.)"""
    from transformers import BertModel

    model: nn.Module = BertModel(config, add_pooling_layer=False)
    return model


def check_tokenizer(tokenizer: Any, source: str) -> None:
    """Refuse a tokenizer of transformers that knows no word: without its files an empty one is made, to which all
    texts are the same."""
    if set(tokenizer(_REPORT)["input_ids"]) <= set(tokenizer.all_special_ids):
        raise UserError(f"the tokenizer knows none of the words of {_REPORT!r}; it has {len(tokenizer)} entries",
                        where=source, expected=f"beside the weights, {TOKENIZER_FILES}",
                        fix="copy them from where the weights came from")


def _check_whole(model: Any, missing: Iterable[str], name: str) -> None:
    """Refuse a text encoder that would be partly random. (The pooler is not read; integers are tables of code's.)"""
    learnt = [key for key, value in model.state_dict().items()
              if value.is_floating_point() and not key.startswith("pooler.")]
    absent = sorted(set(learnt) & set(missing))
    if absent:
        raise UserError(f"the files of the text encoder {name!r} lack {len(absent)} of its {len(learnt)} weights",
                        where="text.name", expected="config.json and weights that belong together",
                        fix=f"first missing: {', '.join(absent[:3])}")


def _from_hub(factory: Any, name: str, **options: Any) -> Any:
    try:
        return factory.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the text encoder {name!r} could not be loaded: {reason}", where="text.name",
                        expected="a transformers model on the hub or in a local folder",
                        fix="download the model once and give its folder: --set text.name=FOLDER") from error
