"""Text encoders: vocabulary, word pieces with their sentences, padding, saving, local folders."""

from __future__ import annotations

import ast
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

from prior_bench.encoders.text import TextEncoder, build_tokenizer, plain
from prior_bench.errors import UserError
from prior_bench.recipes import TextEncoderSpec

REPORTS = ["The heart is enlarged. Small left pleural effusion.", "No pneumothorax. Lungs are clear.",
           "Right lower lobe consolidation, unchanged.", "The heart is normal in size."] * 3
SPEC = TextEncoderSpec(layers=1, width=16, heads=2, vocabulary=90, max_tokens=12)


@pytest.fixture
def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder.build(SPEC, REPORTS).eval()


def test_equal_texts_give_an_equal_vocabulary_in_any_order_and_process():
    here = build_tokenizer(REPORTS, 90).get_vocab()
    assert build_tokenizer(REPORTS[::-1], 90).get_vocab() == here
    code = f"from prior_bench.encoders.text import build_tokenizer; print(build_tokenizer({REPORTS!r}, 90).get_vocab())"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert dict(sorted(ast.literal_eval(there).items())) == dict(sorted(here.items()))
    assert len(here) <= 90


def test_special_tokens_belong_to_no_sentence(encoder):
    tokens = encoder.tokens(["heart", "Lungs clear."])
    text = encoder.tokenizer.convert_ids_to_tokens(tokens.ids)
    assert (text[0], text[-1]) == ("[CLS]", "[SEP]")
    assert (tokens.sentence[0], tokens.sentence[-1]) == (-1, -1)
    assert sorted(set(tokens.sentence[1:-1])) == [0, 1]
    assert encoder.tokenizer.decode(tokens.ids[tokens.sentence == 1]).replace(" ", "") == "lungsclear."


def test_long_texts_are_cut_and_sentences_beyond_the_cut_disappear(encoder):
    tokens = encoder.tokens(["heart"] * 30)
    assert len(tokens.ids) == 12
    assert tokens.sentence.max() < 10


def test_an_empty_text_has_no_sentence(encoder):
    assert list(encoder.tokens([]).sentence) == [-1, -1]


def test_padding_reaches_the_longest_and_changes_nothing(encoder):
    short, long = encoder.tokens(["heart"]), encoder.tokens(["heart", "no effusion", "lungs"])
    both = encoder.pad([short, long])
    assert both["ids"].shape == (2, len(long.ids))
    assert list(both["mask"].sum(dim=1)) == [len(short.ids), len(long.ids)]
    assert (both["sentence"][0, len(short.ids):] == -1).all()
    with torch.no_grad():
        alone = encoder(*(encoder.pad([short])[k] for k in ("ids", "mask")))
        together = encoder(both["ids"], both["mask"])
    torch.testing.assert_close(together[:1, : len(short.ids)], alone, atol=1e-5, rtol=1e-5)


def test_a_saved_tokenizer_gives_the_same_word_pieces_and_configuration(encoder, tmp_path):
    encoder.save(tmp_path)
    again = TextEncoder.build(SPEC, folder=tmp_path)
    for report in (*REPORTS, "Unseen words: mediastinal shift 3.5 cm!"):
        np.testing.assert_array_equal(again.tokens([report]).ids, encoder.tokens([report]).ids)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in encoder.state_dict().items()}
    again.load_state_dict(encoder.state_dict())
    tokens = encoder.pad([encoder.tokens(["no effusion"])])
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(tokens["ids"], tokens["mask"]), encoder(tokens["ids"], tokens["mask"]))


def test_a_saved_tokenizer_is_read_whatever_its_class_is_called(encoder, tmp_path, monkeypatch):
    """transformers 5 writes the name of a class at which AutoTokenizer of 4 stumbles."""
    def stumbles(*args: object, **options: object) -> None:
        raise ValueError("Tokenizer class TokenizersBackend does not exist or is not currently imported.")

    encoder.save(tmp_path)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", stumbles)
    again = TextEncoder.build(SPEC, folder=tmp_path)
    ours, theirs = (e.pad([e.tokens(["Heart is enlarged.", "No pneumothorax."])]) for e in (encoder, again))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_local_folder_of_transformers_is_an_encoder(tmp_path):
    tokenizer = build_tokenizer(REPORTS, 90)
    config = transformers.RobertaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1,
                                        num_attention_heads=2, intermediate_size=32, max_position_embeddings=40)
    model = transformers.RobertaModel(config)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = TextEncoder.build(TextEncoderSpec(name=str(tmp_path), max_tokens=20))
    tokens = encoder.pad([encoder.tokens(["no effusion"])])
    assert encoder(tokens["ids"], tokens["mask"]).shape == (*tokens["ids"].shape, 16)
    torch.testing.assert_close(encoder.model.embeddings.word_embeddings.weight, model.embeddings.word_embeddings.weight)
    model.half().save_pretrained(tmp_path)  # a checkpoint in half precision is read, and trained, in float32
    again = TextEncoder.build(TextEncoderSpec(name=str(tmp_path), max_tokens=20))
    assert {p.dtype for p in again.parameters()} == {torch.float32}


def test_a_text_encoder_that_would_be_partly_random_or_knows_no_words_is_refused(tmp_path):
    tokenizer = build_tokenizer(REPORTS, 90)
    config = transformers.BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1,
                                     num_attention_heads=2, intermediate_size=32)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)  # it has no pooler
    spec = TextEncoderSpec(name=str(tmp_path), max_tokens=20)
    with pytest.raises(UserError, match="tokenizer"):
        TextEncoder.build(spec)
    tokenizer.save_pretrained(tmp_path)
    TextEncoder.build(spec)
    config.num_hidden_layers = 2
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lack 16 of its 37 weights[\s\S]*first missing: encoder\.layer\.1\."):
        TextEncoder.build(spec)


def test_plain_words_are_those_that_gloria_reads():
    assert plain("  The HEART is 3.5cm, naïve - enlarged_x!  ") == "the heart is 3 5cm nave enlarged_x"
    spec = TextEncoderSpec(plain_words=True, layers=1, width=16, heads=2)
    method = TextEncoder.build(spec, ["The heart is 5cm, enlarged."])
    theirs = method.tokenizer("the heart is 5cm enlarged", add_special_tokens=False)["input_ids"]
    assert method.tokens(["The heart is 5cm, enlarged."]).ids[1:-1].tolist() == theirs
    assert method.tokens(["The heart is 5cm, enlarged."]).word.max() == 4  # a comma is no word
    assert "plain_words" not in TextEncoderSpec().model_dump()  # digests stay as they were


def test_a_missing_model_and_missing_reports_are_users_errors(tmp_path):
    with pytest.raises(UserError, match=r"local folder[\s\S]*--set text\.name=FOLDER"):
        TextEncoder.build(TextEncoderSpec(name=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="training reports"):
        TextEncoder.build(SPEC)


def test_word_pieces_know_their_word():
    encoder = TextEncoder.build(SPEC.model_copy(update={"max_tokens": 60}), REPORTS)
    tokens = encoder.tokens(["Pleural effusion.", "The heart is enlarged."])
    pieces = np.array(encoder.tokenizer.convert_ids_to_tokens(tokens.ids))
    words = ["".join(piece.removeprefix("##") for piece in pieces[tokens.word == w]) for w in range(8)]
    assert tokens.word.max() == 7
    assert words == ["pleural", "effusion", ".", "the", "heart", "is", "enlarged", "."]
    assert (tokens.word[0], tokens.word[-1]) == (-1, -1)
    assert len(pieces) > 2 + len(words)  # some words have several pieces
    assert list(encoder.pad([tokens])["word"][0]) == list(tokens.word)


def test_layers_are_those_of_transformers():
    encoder = TextEncoder.build(SPEC.model_copy(update={"layers": 3}), REPORTS).eval()
    tokens = encoder.pad([encoder.tokens([r]) for r in REPORTS[:3]])
    with torch.no_grad():
        theirs = encoder.model(tokens["ids"], tokens["mask"].long(), output_hidden_states=True).hidden_states
        found = encoder.layers(tokens["ids"], tokens["mask"], (2, 1, 3, 3))
    torch.testing.assert_close(found, torch.stack([theirs[number] for number in (2, 1, 3, 3)]))


def test_last_layers_end_with_the_output():
    encoder = TextEncoder.build(SPEC.model_copy(update={"layers": 3}), REPORTS).eval()
    tokens = encoder.pad([encoder.tokens([r]) for r in REPORTS[:3]])
    with torch.no_grad():
        states = encoder.last_layers(tokens["ids"], tokens["mask"], 2)
        torch.testing.assert_close(states[-1], encoder(tokens["ids"], tokens["mask"]))
    assert states.shape == (2, *tokens["ids"].shape, 16)


def small(config: transformers.PretrainedConfig) -> TextEncoder:
    return TextEncoder(transformers.AutoModel.from_config(config).eval(), build_tokenizer(REPORTS, 90), 100)


def test_a_text_encoder_that_names_its_layers_otherwise_is_refused_where_they_are_needed():
    encoder = small(transformers.DistilBertConfig(vocab_size=90, dim=16, n_layers=1, n_heads=2, hidden_dim=32))
    batch = encoder.pad([encoder.tokens(["heart"])])
    assert encoder(batch["ids"], batch["mask"]).shape == (1, len(batch["ids"][0]), 16)
    for use in (lambda: encoder.last_layers(batch["ids"], batch["mask"], 1), lambda: encoder.freeze(1),
                lambda: encoder.with_class_attention(batch["ids"], batch["mask"])):
        with pytest.raises(UserError, match="DistilBertModel"):
            use()


def test_a_text_is_cut_to_the_positions_that_roberta_has():
    encoder = small(transformers.RobertaConfig(vocab_size=90, hidden_size=16, num_hidden_layers=1, pad_token_id=1,
                                               num_attention_heads=2, intermediate_size=32, max_position_embeddings=34))
    assert encoder.max_tokens == 32
    batch = encoder.pad([encoder.tokens(["heart"] * 50)])
    assert encoder(batch["ids"], batch["mask"]).shape == (1, 32, 16)
