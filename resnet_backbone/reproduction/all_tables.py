"""Every table that has runs, by its name."""

from __future__ import annotations

from resnet_backbone.reproduction.classification_tables import classification_tables
from resnet_backbone.reproduction.tables import Table, detection_tables


def all_tables() -> dict[str, Table]:
    """Return them in the paper's order, then those that are not the paper's."""
    tables = (*classification_tables(), *detection_tables())
    return {table.name: table for table in sorted(tables, key=lambda table: not table.name[0].isdigit())}
