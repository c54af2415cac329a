"""Read what an offline run of wandb has stored: its log is LevelDB's, its records protobuf.

Layout: 7 bytes of header, then blocks of 32 KiB; every chunk has a checksum (4 bytes), a length (2)
and a kind (1): a whole record, or the first, a middle or the last part of one. A chunk's own header
never crosses the end of a block.
"""

import json
import struct
import time
import zlib
from pathlib import Path

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32768, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def chunks(data):
    at = HEADER
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, at)
        body = data[at + HEADER : at + HEADER + length]
        if kind == 0 or len(body) < length:
            return
        assert checksum == zlib.crc32(bytes([kind]) + body)
        yield kind, body
        at += HEADER + length


def records(folder):
    [path] = Path(folder).glob("**/run-*.wandb")
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    parts = b""
    for kind, body in chunks(data):
        parts = body if kind in (WHOLE, FIRST) else parts + body
        if kind in (WHOLE, LAST):
            yield wandb_internal_pb2.Record.FromString(parts)


def items(found):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in found}


class Run:
    """History rows, metric definitions, summary and config of one run."""

    def __init__(self, folder):
        self.history, self.metrics, self.summary, self.config = [], {}, {}, {}
        self.exited = False
        for record in records(folder):
            match record.WhichOneof("record_type"):
                case "history":
                    self.history.append(items(record.history.item))
                case "metric":
                    self.metrics[record.metric.name or record.metric.glob_name] = record.metric
                case "summary":
                    self.summary |= items(record.summary.update)
                case "config":
                    self.config |= items(record.config.update)
                case "exit":
                    self.exited = True
                case "run":
                    self.config |= items(record.run.config.update)

    @classmethod
    def finished(cls, folder, seconds=60.0):
        """The run once its last record is there: wandb's service writes after ``finish``."""
        until = time.monotonic() + seconds
        while not (run := cls(folder)).exited and time.monotonic() < until:
            time.sleep(0.1)
        assert run.exited
        return run

    def rows(self, key):
        """Rows in which a key was logged."""
        return [row for row in self.history if key in row]
