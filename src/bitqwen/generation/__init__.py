"""From text to tokens and back: tokenizer, chat template, sampling, stop strings, and the model over them."""
