"""The demo's way from a file to a snapshot: through the broker, the actors and the table.

Design choices: the same functions as behind `flts replay`, `flts ingest run --until-end`, `verify`
and `compact`, one line told of each; what was done before is not done again, so that a second demo
only looks; what is sent follows from the file alone, so a broker that was killed and lost its last
second is sent the same messages for the same offsets, and the store never takes them twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path

from flts_ray.config import Config
from flts_ray.errors import DataError
from flts_ray.ingest.progress import IngestView
from flts_ray.ingest.verify import VerifyReport, verify_store
from flts_ray.jobs.folder import local_folder
from flts_ray.jobs.ingest import run as run_actors
from flts_ray.jobs.ingest_check import compact_stream
from flts_ray.jobs.ingest_worker import epoch_at
from flts_ray.jobs.replay import owner_of_rows, read_rows, replay, replayed_data
from flts_ray.jobs.up import brokers_of, local_stack
from flts_ray.report_stream import problem_lines
from flts_ray.s3_clients import endpoint
from flts_ray.services import Narrator
from flts_ray.sources.snapshot import find_snapshot
from flts_ray.store import Store
from flts_ray.streams import connect
from flts_ray.tune.progress import StudyView
