"""Keys of recipes: what an unknown one is answered, in the words of other trainers too."""

import difflib
from dataclasses import fields, is_dataclass
from typing import Any

from hf_clip.model.configuration_coca_hf_clip import HFCLIPCoCaConfig
from hf_clip.model.configuration_hf_clip import HFCLIPTextConfig, HFCLIPVisionConfig

from .recipe_error import RecipeError

# What the recipe keeps as free tables, but the model reads field by field.
SHAPES = {
    "model.config.": HFCLIPCoCaConfig,
    "model.config.text_config.": HFCLIPTextConfig,
    "model.config.vision_config.": HFCLIPVisionConfig,
}

_EPOCHS = "Use epochs, or steps, which counts updates: epochs x pairs / batch_size."
_WARMUP = "Use optimizer.warmup_steps, which counts updates, or optimizer.warmup_fraction."
_FREEZE = "Use optimizer.vision_tower.trainable_groups and optimizer.text_tower.trainable_groups: 0 freezes a tower."
_FREEZE_IMAGE = "Use optimizer.vision_tower.trainable_groups: 0 freezes the tower, 1 trains its projection alone."
_FREEZE_TEXT = "Use optimizer.text_tower.trainable_groups: 0 freezes the tower, 1 trains its projection alone."
_EVALUATION = "Use evaluations: a table by name, each with its task and data."
_MICRO = (
    "Use micro_batch_size: batch_size counts all pairs of an update, and micro_batch_size those that are held at once."
)
_BATCH = "Use batch_size, which counts the pairs of an update over all processes."
_PRECISION = "Use mixed_precision: no, bf16, fp16 or auto."
_RESUME = "It is not here, because a run is resumed as a whole: give `resume` when training is started."
_OUTPUT = "It is not here, because one recipe serves many runs: give `output_dir` when training is started."
_BEST = (
    "Use checkpoints.best: an evaluation's name and its number, such as validation.image_to_text.recall_at_1; "
    "checkpoints.patience ends a run early."
)
_TRACKER = "Use log_with, a list of trackers: tensorboard, wandb, trackio, mlflow; metrics.jsonl is always written."
_LAUNCHER = "It is not here, because the launcher says it: torchrun or accelerate launch."
_ALWAYS = "It is not here, because the loss of the global batch is always computed in tiles, on each process its part."
_SIZE = "Use model.config.vision_config.image_size."
_CONTEXT = "Use model.config.text_config.max_position_embeddings."
_SCALE = "Use model.config.logit_scale_init_value, the logarithm of the scale at the start."
_START = "Use model.start_from: a Hub id, a folder or a file of any format."
_SCHEDULE = "Use optimizer.schedule: cosine, linear or constant."
_CAPTIONS = "Use data.caption_columns, a list of columns."

# Keys of other trainers (OpenCLIP, transformers, Lightning, timm, sentence-transformers), and earlier ones of ours.
SYNONYMS = {
    **dict.fromkeys(("num_epochs", "n_epochs", "num_train_epochs", "max_epochs", "train_epochs"), _EPOCHS),
    **dict.fromkeys(("max_steps", "num_steps", "total_steps", "iterations", "max_iters", "train_steps"), "Use steps."),
    **dict.fromkeys(("train_num_samples", "num_samples", "samples_seen"), _EPOCHS),
    **dict.fromkeys(("lr", "base_lr", "max_lr", "peak_lr"), "Use optimizer.learning_rate."),
    **dict.fromkeys(("min_lr", "eta_min", "final_lr"), "Use optimizer.final_learning_rate_fraction."),
    **dict.fromkeys(("warmup", "warmup_ratio", "num_warmup_steps", "warmup_epochs"), _WARMUP),
    "wd": "Use optimizer.weight_decay.",
    **dict.fromkeys(("optim", "opt", "optimizer_name"), "Use optimizer.algorithm: adamw or muon."),
    **dict.fromkeys(("beta_1", "adam_beta1", "betas", "momentum"), "Use optimizer.beta1 and optimizer.beta2."),
    **dict.fromkeys(("beta_2", "adam_beta2"), "Use optimizer.beta2."),
    **dict.fromkeys(("eps", "adam_epsilon", "opt_eps"), "Use optimizer.epsilon."),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type", "scheduler", "sched"), _SCHEDULE),
    **dict.fromkeys(
        ("grad_clip_norm", "max_grad_norm", "gradient_clip_val", "clip_grad", "grad_clip"),
        "Use optimizer.max_gradient_norm.",
    ),
    **dict.fromkeys(("freeze", "frozen", "freeze_layers", "unlocked_groups", "lock"), _FREEZE),
    **dict.fromkeys(
        ("lock_image", "lock_image_unlocked_groups", "freeze_vision", "freeze_image", "freeze_vision_model"),
        _FREEZE_IMAGE,
    ),
    **dict.fromkeys(
        ("lock_text", "lock_text_unlocked_layers", "freeze_text", "freeze_text_model"),
        _FREEZE_TEXT,
    ),
    **dict.fromkeys(
        ("val", "val_data", "validation", "valid", "eval", "eval_data", "evaluation", "eval_dataset", "test_data"),
        _EVALUATION,
    ),
    **dict.fromkeys(("imagenet_val", "imagenet_v2", "zeroshot", "zero_shot"), _EVALUATION),
    **dict.fromkeys(("val_split", "eval_split", "validation_split_name"), "Use data.validation_split."),
    **dict.fromkeys(("val_fraction", "test_size", "validation_size", "val_size"), "Use data.validation_fraction."),
    **dict.fromkeys(("eval_on_start", "eval_on_begin", "val_at_start"), "Use eval_at_start."),
    **dict.fromkeys(("protocol", "metric", "kind"), "Use task: retrieval, zero-shot or captions."),
    **dict.fromkeys(("prompts", "prompt", "template", "zero_shot_templates"), "Use templates, a list."),
    **dict.fromkeys(
        ("val_frequency", "zeroshot_frequency", "eval_steps", "eval_strategy", "val_check_interval", "eval_frequency"),
        "Use eval_every, which counts steps, and during_training=true in an evaluation.",
    ),
    **dict.fromkeys(
        ("accum_freq", "gradient_accumulation_steps", "accumulate_grad_batches", "grad_accum_steps"),
        _MICRO,
    ),
    **dict.fromkeys(("mini_batch_size", "chunk_size", "gradcache_chunk_size"), _MICRO),
    **dict.fromkeys(
        ("train_batch_size", "per_device_train_batch_size", "local_batch_size", "global_batch_size"),
        _BATCH,
    ),
    **dict.fromkeys(("fp16", "bf16", "precision", "amp", "autocast", "dtype", "tf32"), _PRECISION),
    **dict.fromkeys(("resume", "resume_from_checkpoint", "resume_from", "auto_resume"), _RESUME),
    **dict.fromkeys(("output_dir", "output", "logs", "log_dir", "save_dir", "default_root_dir"), _OUTPUT),
    **dict.fromkeys(("name", "run_name", "experiment"), _OUTPUT),
    **dict.fromkeys(
        (
            "keep_best",
            "save_best",
            "load_best_model_at_end",
            "metric_for_best_model",
            "early_stopping",
            "early_stopping_patience",
        ),
        _BEST,
    ),
    **dict.fromkeys(("save_most_recent", "save_total_limit", "keep_checkpoints"), "Use checkpoints.keep_last."),
    **dict.fromkeys(("save_steps", "save_frequency", "save_freq"), "Use checkpoints.save_every, which counts steps."),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "repo_id"), "Use checkpoints.push_to: owner/name."),
    **dict.fromkeys(("logging_steps", "log_every_n_steps", "log_interval", "print_freq"), "Use log_every."),
    **dict.fromkeys(("report_to", "wandb", "tensorboard", "logger", "tracker", "use_wandb"), _TRACKER),
    **dict.fromkeys(("num_workers", "dataloader_num_workers"), "Use data.workers: threads of each process."),
    **dict.fromkeys(("train_data", "dataset", "data_path", "dataset_name", "train_file"), "Use data.train."),
    **dict.fromkeys(("dataset_type", "streaming"), "It is not here, because the kind of data is found by looking."),
    **dict.fromkeys(("train_data_upsampling_factors", "sampling_weights"), "Use data.weights."),
    **dict.fromkeys(("csv_caption_key", "caption_column", "text_column", "caption_key", "csv_separator"), _CAPTIONS),
    **dict.fromkeys(("csv_img_key", "image_key", "img_key"), "Use data.image_column."),
    **dict.fromkeys(("shuffle", "shuffle_buffer", "shuffle_buffer_size", "buffer_size"), "Use data.shuffle_block."),
    **dict.fromkeys(("grad_checkpointing", "activation_checkpointing"), "Use gradient_checkpointing."),
    **dict.fromkeys(("torchcompile", "compile"), "Use torch_compile."),
    **dict.fromkeys(("ema", "use_ema", "model_ema", "model_ema_decay"), "Use ema_decay, such as 0.999."),
    **dict.fromkeys(("lora_rank", "lora_r", "peft", "peft_config", "lora_config"), "Use lora: rank, alpha, targets."),
    **dict.fromkeys(("target_modules", "lora_target_modules"), "Use lora.targets, a list of names."),
    **dict.fromkeys(("lora_alpha",), "Use lora.alpha."),
    **dict.fromkeys(("pretrained", "checkpoint", "model_name_or_path", "init_from", "finetune"), _START),
    **dict.fromkeys(("pretrained_image", "vision_model_name_or_path", "image_encoder"), "Use model.vision_tower."),
    **dict.fromkeys(("text_model_name_or_path", "text_encoder", "hf_model_name"), "Use model.text_tower."),
    **dict.fromkeys(("model_name", "arch", "model_type", "backbone"), "Use model.architecture, such as ViT-B/32."),
    **dict.fromkeys(("resolution", "force_image_size", "image_resolution", "img_size"), _SIZE),
    **dict.fromkeys(("context_length", "max_length", "max_seq_length", "seq_length"), _CONTEXT),
    **dict.fromkeys(("vocab_size",), "Use model.vocabulary_size."),
    **dict.fromkeys(("embed_dim", "embedding_dim", "output_dim"), "Use model.config.projection_dim."),
    **dict.fromkeys(("temperature", "init_temperature", "logit_scale", "init_logit_scale"), _SCALE),
    **dict.fromkeys(
        ("coca_caption_loss_weight", "caption_loss_weight", "coca_contrastive_loss_weight", "coca"),
        "Use objective: contrastive + caption, and model.config.caption_loss_weight.",
    ),
    **dict.fromkeys(("siglip", "loss", "loss_type"), "Use model.config.logit_bias_init_value: a sigmoid's bias."),
    **dict.fromkeys(("patch_dropout", "force_patch_dropout"), "Use model.config.vision_config.patch_dropout."),
    **dict.fromkeys(("aug_cfg", "augment", "augmentations", "transforms"), "Use augmentation, a table of strengths."),
    **dict.fromkeys(("image_mean", "mean"), "Use model.image_mean."),
    **dict.fromkeys(("image_std", "std"), "Use model.image_std."),
    **dict.fromkeys(("local_loss", "gather_with_grad", "horovod", "distill_model", "distill_pretrained"), _ALWAYS),
    **dict.fromkeys(("device", "devices", "gpus", "num_gpus", "nodes", "num_nodes", "strategy", "ddp"), _LAUNCHER),
    **dict.fromkeys(("fsdp", "deepspeed", "world_size", "num_processes", "accelerator"), _LAUNCHER),
}


def check_known(given: Any, schema: Any, prefix: str) -> None:
    """Raises RecipeError for the first key of a table that no field of the schema has, with the key to use."""
    schema = SHAPES.get(prefix, schema)
    if not isinstance(given, dict) or not is_dataclass(schema):
        return
    known = {field.name: field for field in fields(schema)}
    for key in given:
        if key not in known:
            raise RecipeError(f"{prefix}{key} is not a key of a recipe. {_advice(str(key), known, prefix)}")


def _advice(key: str, known: dict[str, Any], prefix: str) -> str:
    within = [name for name, entry in known.items() if key in getattr(entry.type, "__dataclass_fields__", ())]
    if within:
        return f"Did you mean {prefix}{within[0]}.{key}?"
    words = key.lower().replace("-", "_")
    if words in SYNONYMS and prefix not in SHAPES:
        return SYNONYMS[words]
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"Did you mean {prefix}{near[0]}?"
    near = difflib.get_close_matches(words, SYNONYMS, n=1, cutoff=0.85) if prefix not in SHAPES else []
    return SYNONYMS[near[0]] if near else f"Known here: {', '.join(known)}."
