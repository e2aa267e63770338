"""`cellctl risk`, put together."""

from __future__ import annotations

import typer

from control.cellctl.risk import documents, hits, lists, replays

app = typer.Typer(
    help="Risk: rules, lists, features, models; what they do and would do.",
    no_args_is_help=True,
    add_completion=False,
)
documents.register(app)
app.add_typer(lists.app, name="list")
replays.register(app)
hits.register(app)
