"""What comes from outside: tokenizer files and checkpoint folders."""
