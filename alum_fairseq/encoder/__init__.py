"""The bridge to fairseq's RoBERTa."""
