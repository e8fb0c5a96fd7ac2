"""``alum-prepare``: from a user's tables to the folders that fairseq fine-tunes on."""
