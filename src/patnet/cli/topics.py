"""The topics of options, by which `--help` and docs/reference/options.md group them."""

__all__ = ["TOPICS", "topic_of"]

TOPICS = {
    "Data": """
        data data_root split train_split val_split val_data val_images val_fraction num_classes cache_size
        cache_dir mean std max_unreadable max_invalid strict keep_empty images annotations decode workers""",
    "Model and weights": """
        model model_kwargs in_chans pretrained weights checkpoint drop drop_path teacher distillation
        distill_alpha distill_features distill_tau backbone backbone_kwargs detector detector_kwargs
        detector_weights width norm all""",
    "Image size and augmentation": """
        img_size progressive_size progressive_epochs crop_pct scale hflip vflip rot90 color_jitter aa reprob
        aug_repeats mixup cutmix mixup_prob mixup_switch_prob min_size max_size train_min_sizes size""",
    "Optimisation": """
        epochs patience batch_size global_batch_size opt lr find_lr min_lr weight_decay schedule warmup_epochs
        warmup_steps warmup_factor lr_steps clip_grad layer_decay freeze_stages head_epochs balance smoothing
        model_ema_decay max_nonfinite""",
    "Prediction and inspection": """
        tta top threshold min_precision score_thresh nms_thresh class_agnostic fused embeddings rows_per_file
        grid csv panels arrays position target""",
    "Export and speed": """
        backend backends format unfused dynamic_batch dynamic_size check_images calibration_images profile
        threads forms memory_format seconds minutes""",
    "Prediction on Ray": "engine ray_address actors actor_cpus actor_gpus actor_gb",
    "Page and Hub": "host port max_mb max_megapixels push private create_pr license grey",
    "Run, devices and precision": """
        out name resume seed device accelerator devices num_nodes strategy sync_bn precision channels_last
        grad_checkpointing torchcompile checkpoint_minutes wandb_project plan plan_images plan_seconds json""",
}


def topic_of(name: str) -> str:
    """The topic of an option; the last one where none lists it, as for the options of scripts."""
    return next((topic for topic, names in TOPICS.items() if name in names.split()), list(TOPICS)[-1])
