"""Stages that make downloads, small data and small models: what each reads, and its work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mnpo.planning.registry import Work, reads, work
from mnpo.storage import hub

if TYPE_CHECKING:
    from mnpo.planning.plan import Plan


@reads("download")
def _download_settings(plan: Plan, directory: str) -> dict[str, Any]:
    source = hub.merged(plan.files.downloads(directory).values())
    if locked := plan.lock.entry(hub.kind_of(source), source):
        source = source.model_copy(update={"files": locked.patterns})  # other configurations' files too
    kept = source.model_dump(include={"hub", "github", "revision", "files", "gated"}, exclude_none=True)
    return {"kind": hub.kind_of(source), "source": kept}


@work
def _downloads(plan: Plan) -> list[Work]:
    directories: dict[str, list[str]] = {}
    for kind in ("models", "datasets"):
        for name, entry in getattr(plan.config, kind).items():
            if entry.downloaded:
                directories.setdefault(plan.files.source(kind, name), []).append(name)
    return [
        Work("download", " ".join(names), (directory,), (), models=tuple(n for n in names if n in plan.config.models))
        for directory, names in directories.items()
    ]


@reads("miniature")
def _miniature_settings(plan: Plan, benchmark: str | None = None, model: str | None = None) -> dict[str, Any]:
    """`seed` is the world's: a benchmark's questions are held out there."""
    of = {"benchmark": benchmark} if model is None else {"model": plan.config.models[model].miniature}
    return {**of, "seed": plan.config.seed}


@work
def _miniatures(plan: Plan) -> list[Work]:
    files, config = plan.files, plan.config
    made = {name: files.miniature(name) for name, entry in config.datasets.items() if entry.demo}
    models = {name: files.miniature_model(name) for name, entry in config.models.items() if entry.miniature}
    return [
        *(Work("miniature", name, (directory,), ()) for name, directory in made.items()),
        *(Work("miniature", f"model {name}", (directory,), ()) for name, directory in models.items()),
    ]
