"""Small tokenizers of every kind that encoder families use, trained here on a few lines of text.

They split texts as the real ones do (the same normaliser, pre-tokeniser, model and special pieces)
with vocabularies of some 500 pieces, so tests need no download. Where the model's own class can be
built from a vocabulary it is used; XLM-RoBERTa and CamemBERT read their normaliser from a compiled
table in the checkpoint, for which NFKC stands in, and ModernBERT and EuroBERT have no class.
"""

import json
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import transformers
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = """\
A well-made film, and the acting isn't bad at all...
It's the worst movie I have seen this year; don't waste your time!
The plot is thin, the jokes are old, and the ending makes no sense.
"I loved it," she said. "Every minute of it."
He said: "This is not a film, it is an advertisement."
Great cast, great music, great fun -- what more could you want?
The director's best work since 1999: funny, sad and very human.
I gave it 7.5 out of 10.  My sister gave it 3.
Two hours of my life that I will never get back!!!
Why do they keep making these sequels?!  Nobody asked for them.
Beautifully shot,  but slow ... so very slow ...
An unforgettable performance in an otherwise forgettable film.
The children laughed, the parents slept. That is all you need to know.
<br /><br />The book was better.<br />
Not the masterpiece that critics promised, yet not a failure either.
The best romantic comedy of the decade, with a script full of surprises.
Un film magnifique : l'actrice principale est éblouissante.
C'était très ennuyeux, et la fin m'a déçue à cause du scénario.
J'ai adoré ce chef-d'œuvre ; les décors sont de toute beauté.
Le réalisateur n'a rien compris à l'histoire de cet été-là.
Ein großartiger Film über Freundschaft, Mut und Käsespätzle.
Die Geschichte ist zäh, aber die Schauspieler überzeugen völlig.
Schöne Bilder, schlechte Gespräche: für mich eine Enttäuschung.
Das Ende war überraschend und natürlich traurig.
这部电影非常好看，演员的表演也很精彩。
故事太长了，我不喜欢这部电影的结局。
导演的新作品很有意思！
音乐很好听，但是剧情没有意思。
هذا الفيلم رائع جدا والتمثيل ممتاز.
لم تعجبني القصة، كانت مملة وطويلة.
الموسيقى جميلة والنهاية حزينة.
فِيلْم جَمِيل، شُكْرًا لكم!
यह फ़िल्म बहुत अच्छी है और अभिनय शानदार है।
कहानी लंबी थी, मुझे अंत पसंद नहीं आया।
संगीत सुंदर है, लेकिन निर्देशन कमज़ोर है।
Loved it 😍😍😍 10/10 would watch again 🎬🍿
Worst. Movie. Ever. 👎🏽 😡
With the family 👨‍👩‍👧 on Sunday ❤️ so good 🇫🇷
Cafe\u0301 scenes, nai\u0308ve hero, the usual cliche\u0301s.
Rating: ***  (three stars)   --   see also www.example.org/films?id=42
""".splitlines()
VOCABULARY = {"WordPiece": 600, "BPE": 600, "Unigram": 500}
"""Pieces to train per kind; byte-level BPE has 256 before the first merge."""

BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
XLNET = ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>")
LLAMA_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def small_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a family, built on first use and shared: do not change it."""
    return FAMILIES[family]()


def trained(
    kind: str, special: tuple[str, ...], unknown: str | None, normalizer: Any, pre_tokenizer: Any,
) -> Tokenizer:
    """A tokenizer of a kind (WordPiece, BPE or Unigram), special pieces first in its vocabulary."""
    model = getattr(models, kind)()
    if kind == "WordPiece":
        model.unk_token = unknown
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    options: dict[str, Any] = {"BPE": {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()},
                               "Unigram": {"unk_token": unknown}}.get(kind, {})
    trainer = {"WordPiece": trainers.WordPieceTrainer, "BPE": trainers.BpeTrainer,
               "Unigram": trainers.UnigramTrainer}[kind](
        vocab_size=VOCABULARY[kind], special_tokens=list(special), show_progress=False, **options
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def own_class(
    tokenizer_class: type[Any], special: tuple[str, ...], **options: Any
) -> PreTrainedTokenizerFast:
    """The family's own class around a vocabulary trained with that class's normaliser."""
    untrained = tokenizer_class(**options)
    backend = untrained.backend_tokenizer
    model = json.loads(trained(
        tokenizer_class.model.__name__, special, untrained.unk_token, backend.normalizer,
        backend.pre_tokenizer,
    ).to_str())["model"]
    vocabulary = {"vocab": model["vocab"]}
    if isinstance(model["vocab"], list):
        vocabulary = {"vocab": [tuple(entry) for entry in model["vocab"]]}
    if "merges" in model:
        vocabulary["merges"] = [tuple(merge) for merge in model["merges"]]
    return tokenizer_class(**vocabulary, model_max_length=512, **options)


def general_class(
    tokenizer: Tokenizer, single: str, pair: str, **named: str
) -> PreTrainedTokenizerFast:
    """The general class around a whole tokenizer, for families whose own class cannot hold it."""
    template = processors.TemplateProcessing(
        single=single, pair=pair,
        special_tokens=[(piece, tokenizer.token_to_id(piece)) for piece in set(named.values())],
    )
    tokenizer.post_processor = template
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=512,
        model_input_names=["input_ids", "attention_mask"], **named,
    )


def sentencepiece_roberta() -> PreTrainedTokenizerFast:
    """XLM-RoBERTa, CamemBERT: Unigram with RoBERTa's special pieces, behind NFKC."""
    layout = transformers.XLMRobertaTokenizer().backend_tokenizer.pre_tokenizer
    tokenizer = trained("Unigram", ROBERTA, "<unk>", normalizers.NFKC(), layout)
    return general_class(
        tokenizer, "<s> $A </s>", "<s> $A </s> </s> $B </s>",
        bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", unk_token="<unk>",
        pad_token="<pad>", mask_token="<mask>",
    )


def modernbert() -> PreTrainedTokenizerFast:
    """ModernBERT: byte-level BPE behind NFC, with pieces of its own for runs of spaces."""
    layout = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = trained("BPE", BERT, None, normalizers.NFC(), layout)
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in (4, 3, 2)])
    return general_class(
        tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", cls_token="[CLS]",
        sep_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]",
    )


def eurobert() -> PreTrainedTokenizerFast:
    """EuroBERT: Llama 3's byte-level BPE, which takes a line break or a space with what follows."""
    layout = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    bos, eos, pad, mask = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>", "<|mask|>"
    tokenizer = trained("BPE", (bos, eos, pad, mask), None, None, layout)
    return general_class(
        tokenizer, f"{bos} $A {eos}", f"{bos} $A {eos} {bos} $B {eos}",
        bos_token=bos, eos_token=eos, pad_token=pad, mask_token=mask,
    )


FAMILIES: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bert": partial(own_class, transformers.BertTokenizer, BERT),
    "bert-cased": partial(own_class, transformers.BertTokenizer, BERT, do_lower_case=False),
    "distilbert": partial(own_class, transformers.DistilBertTokenizer, BERT),
    "electra": partial(own_class, transformers.BertTokenizer, BERT),
    "mpnet": partial(own_class, transformers.MPNetTokenizer, (*ROBERTA, "[UNK]")),
    "roberta": partial(own_class, transformers.RobertaTokenizer, ROBERTA),
    "longformer": partial(own_class, transformers.RobertaTokenizer, ROBERTA),
    "deberta": partial(
        own_class, transformers.DebertaTokenizer, ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
    ),
    "modernbert": modernbert,
    "eurobert": eurobert,
    "xlm-roberta": sentencepiece_roberta,
    "camembert": sentencepiece_roberta,
    "albert": partial(
        own_class, transformers.AlbertTokenizer, ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
    ),
    "deberta-v2": partial(
        own_class, transformers.DebertaV2Tokenizer, ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
    ),
    "xlnet": partial(own_class, transformers.XLNetTokenizer, XLNET),
    "big_bird": partial(
        own_class, transformers.BigBirdTokenizer,
        ("<pad>", "</s>", "<s>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
    ),
}
"""Builders by model type; "bert-cased" is BERT's without lower-casing."""
