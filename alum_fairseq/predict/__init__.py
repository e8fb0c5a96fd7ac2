"""Prediction with a fine-tuned checkpoint: ``alum-predict``, and the class behind it."""

from alum_fairseq.predict.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor"]
