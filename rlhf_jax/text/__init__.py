"""Text to token ids and back: tokenizers, chat templates, the encoding of prompts and completions."""
