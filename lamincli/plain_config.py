"""A config of ours as the plain `LightningCLI` reads it, for who has no lamin-train. Pure."""

from typing import Any

import yaml

_OURS = (
    "lamincli.Checkpoint",
    "lamincli.callbacks.checkpoint.Checkpoint",
    "lamindb.integrations.lightning.Checkpoint",
)
_STOCK = "lightning.pytorch.callbacks.ModelCheckpoint"
# What Lightning's callback does not take.
_PUBLISHING = {"key_is_virtual", "artifact_observers", "run_uid_is_version", "features", "publish",
               "spool_limit_gb", "patience_s"}  # fmt: skip


def plain_config(text: str) -> str | None:
    """Return the text of a config without the groups of `LaminLightningCLI`.

    The group ``checkpoint`` becomes a `ModelCheckpoint` that is listed; so does a callback of ours
    or of lamindb's. References into LaminDB stay: only lamin-train can look them up.

    Args:
        text: A resolved config in YAML.

    Returns:
        `None` where the text is no config.
    """
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:  # with tags of the project's own
        return None
    if not isinstance(config, dict):
        return None
    config.pop("lamin", None)
    options = config.pop("checkpoint", None) or {}
    trainer = config.get("trainer")
    if isinstance(trainer, dict):
        listed = trainer.get("callbacks") or []
        listed = [_plain(one) for one in (listed if isinstance(listed, list) else [listed])]
        has_one = any(_class_of(one).endswith("ModelCheckpoint") for one in listed)
        if not has_one and trainer.get("enable_checkpointing") is not False:
            listed.append(_stock(options))
        trainer["callbacks"] = listed or None
    return yaml.safe_dump(config, sort_keys=False)


def _class_of(callback: Any) -> str:
    return str(callback.get("class_path", "")) if isinstance(callback, dict) else ""


def _plain(callback: Any) -> Any:
    is_ours = _class_of(callback) in _OURS
    return _stock(callback.get("init_args") or {}) if is_ours else callback


def _stock(arguments: dict[str, Any]) -> dict[str, Any]:
    taken = {name: value for name, value in arguments.items() if name not in _PUBLISHING}
    return {"class_path": _STOCK, "init_args": taken}
