"""Networks for the Hugging Face Hub: directories with a model card for timm and transformers, and their upload."""

from .card import model_card
from .folder import push_to_hub, write_hub_folder

__all__ = ["model_card", "push_to_hub", "write_hub_folder"]
