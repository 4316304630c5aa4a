"""How many rows a set of files holds, before they are read.

Design choices: one footer tells how dense files of a set are, because they come from one writer;
a file that cannot be read is no reason to stop here, where its other problems are not told.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from flts_ray.s3_clients import scan_filesystem
from flts_ray.sources.inputs import Input


def rows_expected(inputs: Sequence[Input], targets: int = 1) -> int:
    """About how many rows of series the files hold, from the footer of the largest Parquet file.

    targets: series that a row of a file becomes. 0 where no footer tells: a byte of text is never
    a row.
    """
    packed = [one for one in inputs if one.format == "parquet" and one.size > 0]
    if not packed:
        return 0
    sample = max(packed, key=lambda one: one.size)
    remote = sample.uri.startswith("s3://")
    system = scan_filesystem() if remote else fs.LocalFileSystem()
    try:
        with system.open_input_file(sample.uri.removeprefix("s3://")) as source:
            rows = pq.ParquetFile(source).metadata.num_rows
    except (pa.ArrowException, OSError):
        return 0
    return round(rows * targets * sum(one.size for one in packed) / sample.size)
