"""`cellctl risk`, put together."""

from __future__ import annotations

import typer

from control.cellctl.risk import documents, factors, hits, lists, replays, reviews

app = typer.Typer(
    help="Risk: rules, lists, features, models; what they do and would do.",
    no_args_is_help=True,
    add_completion=False,
)
documents.register(app)
app.add_typer(lists.app, name="list")
app.add_typer(reviews.app, name="reviews")
app.add_typer(factors.app, name="factor")
replays.register(app)
hits.register(app)
