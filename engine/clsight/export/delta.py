"""A Delta Lake table: the rows of a run replaced in one commit."""

import pyarrow as pa

from clsight.export.rows import RUN_ID, Rows, extra, plain, refuse_other_columns


def write(rows: Rows, folder: str) -> None:
    """Put rows into the table in a folder, in place of those that have their run id.

    Raises:
        UsageError: it has other columns.
        ClsightError: it cannot be written; what was in it is still there.
    """
    deltalake = extra("deltalake")
    with rows.failures_named(folder, deltalake.exceptions.DeltaError, OSError):
        if deltalake.DeltaTable.is_deltatable(folder):
            there = _columns(pa.schema(deltalake.DeltaTable(folder).schema()))
            refuse_other_columns(f"the Delta table {folder}", there, _columns(rows.schema))
        own = str(rows.run_id).replace("'", "''")
        # Each run has files of its own, which readers find by their statistics. With partitions the
        # library would read far ahead of its writing: 1.6 GB for 37 million rows, and not 0.6.
        deltalake.write_deltalake(folder, rows.reader(), mode="overwrite",
                                  predicate=f"{RUN_ID} = '{own}'")


def _columns(schema: pa.Schema) -> list[str]:
    return [f"{field.name} {plain(field.type)}" for field in schema]
