"""From text to tokens and back: tokenizer, chat template, sampling, stop strings, and the model that ties them."""
