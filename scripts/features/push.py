"""From a file into the feature store.

The whole file is checked first; nothing is written unless all of it is right. Then each row is one atomic step, which
writes only values that are not older than those that stand there: a push may be repeated, two may run at once, and the
newest value stays. How far a push has come stands in the store, in the same order as the rows: killed at any moment,
the same command goes on from there, also after the store was restarted and has lost its last second.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import redis

from marctl.core.errors import UserError
from marctl.core.faults import listed
from marctl.core.progress import track
from marctl.features.table import Row, Table, TableInvalid
from marctl_handlers.features.entity import RESERVED
from marctl_handlers.features.stored import text_of

AT_ONCE = 500
"""Rows in one round trip."""
MOST_TWICE = 20
PROGRESS = f"{RESERVED}features:push:"
PROGRESS_S = 7 * 24 * 3600
"""How long an interrupted push may wait."""

# One entity. A later stamp of the whole entity (`@time`) goes before an earlier one of the feature. A value that is
# missing is removed, and its stamp stays, so that an older push does not bring it back. The key expires as late as any
# push wants it to.
WRITE = """
local key, stamp, ttl_ms = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local asked = {'@time'}
for i = 3, #ARGV, 2 do asked[#asked + 1] = '@time:' .. ARGV[i] end
local left = redis.call('PTTL', key)
local stamps = redis.call('HMGET', key, unpack(asked))
local common = tonumber(stamps[1] or '') or -1
local set, removed = {}, {}
for i = 3, #ARGV, 2 do
  local own = tonumber(stamps[(i + 1) / 2] or '') or -1
  if math.max(own, common) <= stamp then
    set[#set + 1] = asked[(i + 1) / 2]
    set[#set + 1] = ARGV[1]
    if ARGV[i + 1] == '' then
      removed[#removed + 1] = ARGV[i]
    else
      set[#set + 1] = ARGV[i]
      set[#set + 1] = ARGV[i + 1]
    end
  end
end
if #removed > 0 then redis.call('HDEL', key, unpack(removed)) end
if #set > 0 then redis.call('HSET', key, unpack(set)) end
if ttl_ms == 0 then
  if left >= 0 then redis.call('PERSIST', key) end
elseif left == -2 or (left >= 0 and left < ttl_ms) then
  redis.call('PEXPIRE', key, ttl_ms)
end
return #set > 0 and 1 or 0
"""


@dataclass(frozen=True)
class Pushed:
    """`older`: rows of which the store knows newer values only. `resumed`: rows that an earlier run had written."""

    rows: int
    older: int
    resumed: int
    seconds: float


class Push:
    """One file on its way into the store."""

    def __init__(self, client: redis.Redis, table: Table, ttl_s: float | None) -> None:
        self._client = client
        self._table = table
        self._ttl_ms = 0 if ttl_s is None else max(1, round(ttl_s * 1000))
        self._write = client.register_script(WRITE)
        self._marker = PROGRESS + digest_of(table, self._ttl_ms)
        self.done = self.total = 0

    def run(self, note: Callable[[str], None]) -> Pushed:
        """Raises TableInvalid before anything is written, UserError saying how far it came, redis.RedisError."""
        started = time.monotonic()
        self.total = check(self._table)
        resumed, stamp_s = self._progress()
        if resumed:
            note(f"{resumed:,} of {self.total:,} rows were written by an earlier run; going on from there")
        self.done = resumed
        older = 0
        rows = islice(self._table.rows(), resumed, None)
        blocks = -(-(self.total - resumed) // AT_ONCE)
        with track("push", blocks) as advance:
            while block := list(islice(rows, AT_ONCE)):
                older += self._write_block(block, stamp_s)
                advance(f"{self.done:,} of {self.total:,} rows")
        self._client.delete(self._marker)
        return Pushed(self.total, older, resumed, round(time.monotonic() - started, 3))

    def _progress(self) -> tuple[int, float]:
        """Rows that are written already, and the time that rows without one have."""
        found: Any = self._client.get(self._marker)
        if found is None:
            return 0, float(int(time.time()))
        done, stamp_s = found.split()
        return int(done), float(stamp_s)

    def _write_block(self, rows: list[Row], stamp_s: float) -> int:
        """How many of the rows were older than what is stored."""
        calls = self._client.pipeline(transaction=False)
        for row in rows:
            self._write(keys=[self._key(row)], args=self._arguments(row, stamp_s), client=calls)
        replies = calls.execute(raise_on_error=False)
        for row, reply in zip(rows, replies, strict=True):
            if isinstance(reply, Exception):
                where = f"the store refused row {row.number} ({self._key(row)}): {reply}"
                raise UserError(f"{self.done:,} of {self.total:,} rows are written; {where}")
        self.done += len(rows)
        self._client.set(self._marker, f"{self.done} {stamp_s}", ex=PROGRESS_S)
        return replies.count(0)

    def _key(self, row: Row) -> str:
        return self._table.entity.key_of(row.entity_id)

    def _arguments(self, row: Row, stamp_s: float) -> list[str]:
        stamp = stamp_s if row.time_s is None else row.time_s
        values = [
            text
            for feature, value in zip(self._table.features, row.values, strict=True)
            for text in (feature.name, "" if value is None else text_of(feature, value))
        ]
        return [str(int(stamp)) if stamp == int(stamp) else f"{stamp:.3f}", str(self._ttl_ms), *values]


def digest_of(table: Table, ttl_ms: int) -> str:
    """Of everything that says what is written: the file's bytes, the columns that are read, the expiry."""
    with table.path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256")
    names = [table.entity.key, table.time_column or "", str(ttl_ms), *(feature.name for feature in table.features)]
    found.update("\0".join(names).encode("utf-8", "surrogatepass"))
    return found.hexdigest()


def check(table: Table) -> int:
    """The number of rows. Raises TableInvalid for faults, and for an entity that stands twice without times."""
    seen: set[int | str] = set()
    twice: list[str] = []
    count = 0
    for row in table.rows():
        count += 1
        if table.time_column is None:
            if row.entity_id in seen and len(twice) < MOST_TWICE:
                twice.append(f"row {row.number}: {table.entity.name} {row.entity_id} stands in an earlier row, too")
            seen.add(row.entity_id)
    if twice:
        cure = "say by a column which one is newer, with --time-column, or remove all but one"
        raise TableInvalid(listed(table.path, [*twice, cure]))
    return count
