"""Experiment trackers in Axolotl's recipes."""

from __future__ import annotations

from hooktrain import Collector
from hooktrain_recipes.reasons import TRACKER
from hooktrain_recipes.tables import Row, all_ignored, told
from hooktrain_recipes.trackers import add_tracker

__all__ = ["TRACKER_ROWS", "set_trackers"]

_KEYS = {
    "tensorboard": {},
    "wandb": {
        "wandb_project": "project", "wandb_name": "name", "wandb_entity": "entity", "wandb_mode": "mode",
        "wandb_run_id": "id",
    },
    "mlflow": {
        "mlflow_experiment_name": "experiment_name", "mlflow_tracking_uri": "tracking_uri",
        "mlflow_run_name": "run_name",
    },
    "trackio": {"trackio_project_name": "project", "trackio_run_name": "name", "trackio_space_id": "space_id"},
    "swanlab": {
        "swanlab_project": "project", "swanlab_experiment_name": "experiment_name",
        "swanlab_description": "description", "swanlab_mode": "mode", "swanlab_workspace": "workspace",
    },
}  # fmt: skip
"""Keys of each tracker, with the names that its package has for them; the first one asks for the tracker too."""
_OTHERS = ("use_comet", "comet_project_name", "use_otel_metrics")
_MORE = (
    "comet_api_key comet_workspace comet_experiment_key comet_mode comet_online comet_experiment_config"
    " otel_metrics_host otel_metrics_port"
)

TRACKER_ROWS: tuple[Row, ...] = (
    *told({f"use_{name}": ("trackers", "") for name in _KEYS}),
    *told({key: ("trackers", "") for keys in _KEYS.values() for key in keys}),
    *all_ignored("belongs to a tracker that is not used", *(key for keys in _KEYS.values() for key in keys)),
    *all_ignored("trackers get metrics and the recipe alone", "wandb_watch", "wandb_log_model",
                 "hf_mlflow_log_artifacts", "swanlab_log_model"),
    *all_ignored("no answers are generated in evaluations", "swanlab_log_completions",
                 "swanlab_completion_log_interval", "swanlab_completion_max_buffer"),
    *all_ignored("belongs to a tracker that is not used", *_MORE.split()),
    *(TRACKER.row(key, off=(None, False, "")) for key in _OTHERS),
)  # fmt: skip


def set_trackers(found: Collector) -> None:
    """Set ``trackers``."""
    for name, keys in _KEYS.items():
        use, first = f"use_{name}", next(iter(keys), "")
        if first and name != "swanlab" and found.get(first) and found.get(use) is not False:
            add_tracker(found, [key for key in (use, first) if found.get(key)], name, keys)
        elif found.get(use):
            add_tracker(found, [use], name, keys)
        elif use in found:
            found.ignored(use, "no tracker is asked for")
