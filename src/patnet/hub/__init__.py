"""Networks on the Hugging Face Hub: directories with a model card, and their upload."""

from .card import model_card
from .directory import is_hub_directory, push_to_hub, write_hub_directory

__all__ = ["is_hub_directory", "model_card", "push_to_hub", "write_hub_directory"]
