"""A small tokenizer of the kind UMT5 has, trained on the spot."""

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import Unigram
from tokenizers.trainers import UnigramTrainer

SENTENCES = [
    "a red fox runs through the snow at dawn",
    "a blue boat drifts on a quiet lake while the sun sets",
    "the camera follows a child running along the beach",
    "two cats play chess in a candle lit room, photorealistic",
]


def small_tokenizer() -> Tokenizer:
    """Unigram pieces with "<pad>" first and "</s>" after every text."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return tokenizer
