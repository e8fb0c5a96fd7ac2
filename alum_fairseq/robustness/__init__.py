"""How robust is a fine-tuned checkpoint? ``alum-robustness`` measures it and writes a report."""
