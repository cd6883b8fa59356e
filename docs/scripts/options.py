"""Writes docs/reference/options.md: the options of all commands, grouped by topic, from the parser.

Run with `python docs/scripts/options.py`; `--check` only says whether the page is up to date.
"""

import sys
from pathlib import Path

from patnet.cli.parser import COMMANDS, Command, Option
from patnet.train.config import describe_type

PAGE = Path(__file__).parents[1] / "reference" / "options.md"

TOPICS = {
    "Data": """
        data data_root split train_split val_split val_data val_images val_fraction num_classes cache_size cache_dir
        max_unreadable max_invalid strict keep_empty images annotations decode workers""",
    "Model and weights": """
        model model_kwargs in_chans weights checkpoint drop drop_path freeze_stages teacher distillation distill_alpha
        distill_tau backbone backbone_kwargs detector detector_kwargs detector_weights width norm all""",
    "Image size and augmentation": """
        img_size progressive_size progressive_epochs crop_pct scale hflip vflip rot90 color_jitter aa reprob aug_repeats
        mixup cutmix mixup_prob mixup_switch_prob min_size max_size train_min_sizes size""",
    "Optimisation": """
        epochs batch_size global_batch_size opt lr min_lr weight_decay schedule warmup_epochs warmup_steps warmup_factor
        lr_steps clip_grad layer_decay balance smoothing model_ema_decay max_nonfinite""",
    "Prediction and inspection": """
        tta top score_thresh nms_thresh class_agnostic shard_size parquet grid csv panels arrays position target""",
    "Export and speed": """
        backend backends format unfused dynamic_batch dynamic_size check_images calibration_images profile threads
        forms memory_format seconds minutes""",
    "Page and Hub": "host port max_mb max_megapixels push private create_pr license grey",
    "Run, devices and precision": """
        out name resume seed device accelerator devices num_nodes strategy sync_bn precision channels_last
        grad_checkpointing torchcompile checkpoint_minutes wandb_project plan plan_images plan_seconds json""",
}
OTHER = "Other"

HEAD = """# Options

Options are written with hyphens on the command line (`--batch-size 64`), and with underscores in YAML files, which
`--config FILE.yaml` reads. Options on the command line win over those of `--config`, those over `--recipe`. A flag
`--x` has its opposite `--no-x`. `--print-config` prints all options as YAML. `patnet COMMAND --help` shows those of one
command.

This page is written by `python docs/scripts/options.py`.
"""


def topic_of(name: str) -> str:
    """The topic of an option."""
    return next((topic for topic, names in TOPICS.items() if name in names.split()), OTHER)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _row(option: Option, commands: list[str]) -> str:
    if option.required:
        default = "required"
    elif isinstance(option.default, bool):
        default = "on" if option.default else "off"
    else:
        values = option.default if isinstance(option.default, tuple | list) else [option.default]
        default = "" if option.default in (None, {}, (), []) else f"`{' '.join(map(str, values))}`"
    value = "" if option.hint is bool else describe_type(option.hint).removesuffix(" or null")
    return f"| `{option.flag}` | {_cell(value)} | {_cell(default)} | {', '.join(commands)} | {_cell(option.help)} |"


def make_page() -> str:
    """The page, in Markdown."""
    rows: dict[str, dict[tuple[str, str, str], tuple[Option, list[str]]]] = {topic: {} for topic in [*TOPICS, OTHER]}
    for name in COMMANDS:
        command = Command(name)
        for option in command.options.values():
            if option.name not in command.positional:
                key = (option.name, str(option.default), option.help)
                rows[topic_of(option.name)].setdefault(key, (option, []))[1].append(name)
    parts = [HEAD]
    for topic, options in rows.items():
        if options:
            lines = [_row(option, commands) for _, (option, commands) in sorted(options.items())]
            head = ["| option | value | default | commands | meaning |", "| --- | --- | --- | --- | --- |"]
            parts.append("\n".join([f"## {topic}\n", *head, *lines]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    page = make_page()
    if "--check" in sys.argv:
        sys.exit(f"{PAGE} is out of date: run {sys.argv[0]}" if PAGE.read_text(encoding="utf-8") != page else 0)
    PAGE.write_text(page, encoding="utf-8")
