"""The adversary and the methods that train with it: torch alone, a model is a function."""
