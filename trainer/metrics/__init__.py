"""What a model's predictions are worth: streaming in training, exact in evaluation."""

from trainer.metrics.streaming import TaskMetrics
from trainer.metrics.values import TaskValues

__all__ = ["TaskMetrics", "TaskValues"]
