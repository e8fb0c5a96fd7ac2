"""Tables, vocabularies and binarised data."""
