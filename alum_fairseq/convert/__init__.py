"""``alum-convert``: from Hugging Face's folders to fairseq's checkpoints, and back."""
