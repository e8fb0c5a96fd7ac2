"""Fine-tunes an encoder of Hugging Face with ALUM: train.py MODEL TRAIN.tsv VALID.tsv OUTPUT."""

import csv
import sys

from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

from alum_fairseq.huggingface import AlumTrainer

name, train, valid, output = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(name)


def rows(path):
    """Read a table with the columns sentence and label."""
    with open(path, encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    return [{**tokenizer(row["sentence"]), "labels": int(row["label"])} for row in table]


trainer = AlumTrainer(
    model=AutoModelForSequenceClassification.from_pretrained(name, num_labels=2),
    args=TrainingArguments(output, num_train_epochs=3, learning_rate=5e-5, logging_steps=10),
    processing_class=tokenizer,
    train_dataset=rows(train),
    eval_dataset=rows(valid),
    compute_metrics=lambda found: {"accuracy": (found[0].argmax(-1) == found[1]).mean()},
    alum_preset="calibrated",
)
trainer.train()
print(trainer.evaluate())
trainer.save_model()
