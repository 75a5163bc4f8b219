"""Golden vectors for any engine of these families: written from seeds, checked against answers.

A suite is a folder: small random checkpoints in Hugging Face layout, token ids and pictures in, expected logits,
prompts, parsed answers and patches out, each with a tolerance and with the mistakes that it finds. docs/conformance.md
is the description for the authors of other engines.
"""
