"""The same model, tokenizer and requests through other servers, on the same machine, in turns."""
