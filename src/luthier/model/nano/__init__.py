"""The nano base model: a tokenizer and a tiny model that a laptop makes by itself, from text bundled here."""
