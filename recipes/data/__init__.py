"""Data modules of the recipes: sequences, sentences, images cut into frames."""
