"""Where the stages of a timm model end."""

from typing import Any

__all__ = ["stages_of"]


def stages_of(model: Any) -> list[dict[str, Any]]:
    """What timm says of each stage, first to last: `module` its name, `num_chs` its channels, `reduction` its stride.

    Empty for a model without `feature_info`.
    """
    info: Any = getattr(model, "feature_info", None) or []
    return list(getattr(info, "info", info))
