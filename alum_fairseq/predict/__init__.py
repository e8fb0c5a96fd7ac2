"""Prediction with a fine-tuned checkpoint: ``alum-predict``, and the class behind it."""

from alum_fairseq.predict.predictor import Predictor
from alum_fairseq.problems import Prediction

__all__ = ["Prediction", "Predictor"]
