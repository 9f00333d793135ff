"""Prompts to text embeddings: cleaning, token ids, the encoder, and a cache on disk."""

from vidcache_jax.text.cleaning import clean_prompt as clean_prompt
from vidcache_jax.text.embedding_cache import EmbeddingCache as EmbeddingCache
from vidcache_jax.text.encoder import TextEncoder as TextEncoder
from vidcache_jax.text.tokenizer import PromptTokenizer as PromptTokenizer
from vidcache_jax.text.tokenizer import load_tokenizer as load_tokenizer
from vidcache_jax.text.tokenizer import tokenizer_file as tokenizer_file
