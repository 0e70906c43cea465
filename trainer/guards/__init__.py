"""What watches over a run while it trains: bounded evaluations, early stopping, bad steps and spikes of the loss.

They look on: none of them changes a weight.
"""

from trainer.guards.ending import Ending
from trainer.guards.guards import Guards

__all__ = ["Ending", "Guards"]
