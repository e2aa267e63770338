"""One day of one channel: both sides as Parquet, what agrees set aside, the rest for `rules`.

DuckDB does the heavy part with a bounded memory, on disk where it must. One full join on the key
that most lines carry lets through only what does not agree or is not unique; that pool is small,
and what is not small is no reconciliation but a wrong statement (Implausible). The pool is then
matched one to one, from the surest key to a guess, and each pair or half is judged in Python by
plain functions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from cells.reconciliation.model import (
    Batch,
    Expectation,
    FeeDifference,
    How,
    Implausible,
    Ours,
    Pool,
    Sums,
    Theirs,
)
from cells.reconciliation.rules import is_implausible
from cells.reconciliation.settings import ChannelPolicy, EngineSettings, FeeTier, Limits

OURS_COLUMNS = {
    "attempt_id": "VARCHAR", "owner_id": "VARCHAR", "original_id": "VARCHAR",
    "short_reference": "VARCHAR", "bank_reference": "VARCHAR", "kind": "VARCHAR",
    "amount": "BIGINT", "currency": "VARCHAR", "expect": "VARCHAR", "state": "VARCHAR",
    "happened_at": "TIMESTAMP", "carried": "VARCHAR", "carried_class": "VARCHAR",
}  # fmt: skip
THEIRS_COLUMNS = {
    "line_no": "BIGINT", "reference": "VARCHAR", "short_reference": "VARCHAR",
    "bank_reference": "VARCHAR", "kind": "VARCHAR", "amount": "BIGINT", "fee": "BIGINT",
    "currency": "VARCHAR", "status": "VARCHAR", "happened_at": "TIMESTAMP", "batch": "VARCHAR",
    "carried": "VARCHAR", "carried_class": "VARCHAR",
}  # fmt: skip
assert tuple(OURS_COLUMNS) == Ours._fields
assert tuple(THEIRS_COLUMNS) == Theirs._fields

# Our column and theirs, by what finds a line its attempt.
_KEYS = {
    How.REFERENCE: ("attempt_id", "reference"),
    How.SHORT_REFERENCE: ("short_reference", "short_reference"),
    How.BANK_REFERENCE: ("bank_reference", "bank_reference"),
}
_LINE = f"o.expect IN ('{Expectation.LINE}', '{Expectation.PAIR}')"
# The same as rules.agrees.
_AGREES = f"""(({_LINE} AND t.status = 'booked' AND o.amount = t.amount
    AND o.currency = t.currency)
    OR (o.expect = 'nothing' AND t.status NOT IN ('booked', 'pending')))"""
# Of what both sides may agree on: key, money and whether it moved; NULL agrees with nothing. 128
# bits of MD5: not against forgers, who could as well write the reference itself.
_DIGESTS_OURS = (
    "CASE WHEN expect IN ('line', 'pair')"
    " THEN md5_number(concat('m', amount, currency, {0})) WHEN expect = 'nothing'"
    " THEN md5_number(concat('n', {0})) END"
)
_DIGESTS_THEIRS = (
    "CASE WHEN {0} = '' OR status = 'pending' THEN NULL WHEN status = 'booked'"
    " THEN md5_number(concat('m', amount, currency, {0})) ELSE md5_number(concat('n', {0})) END"
)
# Digests that a megabyte holds, with what a hash join adds to them; more go in parts.
_ROWS_A_MB = 10_000
_BETTER = f"{_AGREES} DESC, o.kind = t.kind DESC, o.amount = t.amount DESC, t.line_no, o.attempt_id"
# Rounds of one-to-one matching on a key that repeats on both sides.
_ROUNDS_MAX = 64
# Equal amounts within a guess's window that are still looked at.
_ALIKE_MAX = 50
_OURS, _THEIRS = ", ".join(OURS_COLUMNS), ", ".join(THEIRS_COLUMNS)


@dataclass(frozen=True, slots=True)
class Sources:
    """Parquet files: of attempts, those that are carried among them (OURS_COLUMNS); the statement
    as it was taken in (cells.statements.columns); lines carried from earlier days
    (THEIRS_COLUMNS)."""

    ours: Path
    statement: Path | None
    carried: Path | None = None


@contextmanager
def engine(folder: Path, settings: EngineSettings) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB in memory that spills into `folder`, and reads nothing from elsewhere by itself."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{settings.memory_limit_mb}MB",
        "threads": str(settings.threads),
        "temp_directory": str(folder / "spill"),
        "preserve_insertion_order": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
    }
    with duckdb.connect(":memory:", config=config) as connection:
        yield connection


class Matching:
    """One day. `run` may be called once."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        sources: Sources,
        policy: ChannelPolicy,
        limits: Limits,
        settings: EngineSettings | None = None,
    ) -> None:
        self._memory_mb = (settings or EngineSettings()).memory_limit_mb
        self._db = connection
        self._sources = sources
        self._policy = policy
        self._limits = limits
        self._lead = How.REFERENCE
        self.seconds: dict[str, float] = {}
        self.lines = 0
        self.ours = 0

    def run(self) -> tuple[Pool, tuple[Sums, ...]]:
        """Raises Implausible."""
        pool = Pool()
        with self._timed("read"):
            self._views()
        with self._timed("batches"):
            pool.batches = self._batches()
            pool.in_batches = self._db.execute(
                "SELECT carried FROM all_ours JOIN batch_items USING (attempt_id)"
                " WHERE carried <> ''"
            ).fetchall()
        with self._timed("join"):
            self._join()
        self._plausible()
        with self._timed("pool"):
            self._match()
            self._fetch(pool)
        with self._timed("fees"):
            pool.fees = self._fee_differences()
        with self._timed("sums"):
            sums = self._sums(pool)
        return pool, sums

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[step] = round(time.perf_counter() - began, 3)

    def _one(self, sql: str, *arguments: object) -> Any:
        row = self._db.execute(sql, list(arguments)).fetchone()
        assert row is not None, "an aggregate has a row"
        return row[0] if len(row) == 1 else row

    def _views(self) -> None:
        sources = self._sources
        self._db.execute(
            f"CREATE VIEW all_ours AS SELECT {_OURS} FROM read_parquet('{_quoted(sources.ours)}')"
        )
        theirs = []
        if sources.statement is not None:
            renamed = _THEIRS.replace("happened_at", "booked_at AS happened_at").replace(
                "carried, carried_class", "'' AS carried, '' AS carried_class"
            )
            theirs.append(f"SELECT {renamed} FROM read_parquet('{_quoted(sources.statement)}')")
        if sources.carried is not None:
            theirs.append(f"SELECT {_THEIRS} FROM read_parquet('{_quoted(sources.carried)}')")
        self._db.execute(f"CREATE VIEW all_theirs AS {' UNION ALL '.join(theirs)}")
        self._db.execute(
            "CREATE VIEW lines AS SELECT * FROM all_theirs WHERE kind NOT IN ('fee', 'batch')"
        )
        # The key that most lines carry; the pool knows the others.
        counted = self._one(
            "SELECT count(*), count(nullif(reference, '')), count(nullif(short_reference, '')),"
            " count(nullif(bank_reference, '')) FROM lines"
        )
        lines = counted[0]
        for how, carried in zip(_KEYS, counted[1:], strict=True):
            if carried * 2 >= lines:
                self._lead = how
                break
        self.lines = self._one("SELECT count(*) FROM all_theirs WHERE carried = ''")
        self.ours = self._one("SELECT count(*) FROM all_ours")

    def _batches(self) -> list[Batch]:
        """Batch lines against the sum of their items; the items then need no line of their own."""
        self._db.execute(
            "CREATE TEMP TABLE batch_lines AS SELECT row_number() OVER (ORDER BY line_no) AS bid,"
            " *, COALESCE(nullif(reference, ''), bank_reference) AS batch_id"
            " FROM all_theirs WHERE kind = 'batch' AND status = 'booked'"
        )
        # Which attempts are a batch's: those to which the bank gave its reference, or that the
        # line lists. One batch line each: the first that names them.
        self._db.execute(
            f"""CREATE TEMP TABLE batch_items AS SELECT attempt_id, min(bid) AS bid FROM (
                SELECT o.attempt_id, b.bid FROM all_ours AS o JOIN batch_lines AS b
                    ON o.bank_reference = b.batch_id WHERE {_LINE} AND b.batch_id <> ''
                UNION ALL SELECT o.attempt_id, b.bid FROM all_ours AS o JOIN (
                    SELECT bid, unnest(string_split_regex(reference, '[ ,;|]+')) AS listed
                    FROM batch_lines WHERE regexp_matches(reference, '[ ,;|]')
                ) AS b ON o.attempt_id = b.listed WHERE {_LINE}
            ) GROUP BY attempt_id"""
        )
        self._db.execute("CREATE VIEW o_all AS SELECT * FROM all_ours")
        if self._one("SELECT count(*) FROM batch_items"):
            self._db.execute(
                "CREATE OR REPLACE VIEW o_all AS SELECT * FROM all_ours"
                " WHERE attempt_id NOT IN (SELECT attempt_id FROM batch_items)"
            )
        rows = self._db.execute(
            f"""SELECT {_prefixed("b", THEIRS_COLUMNS)}, i.items, i.amount,
                (SELECT list(c.attempt_id ORDER BY c.attempt_id)[:5] FROM batch_items AS bi
                    JOIN all_ours AS c ON c.attempt_id = bi.attempt_id
                    WHERE bi.bid = b.bid AND c.amount = i.amount - b.amount)
            FROM batch_lines AS b JOIN (
                SELECT bi.bid, count(*) AS items, CAST(sum(o.amount) AS BIGINT) AS amount
                FROM batch_items AS bi JOIN all_ours AS o ON o.attempt_id = bi.attempt_id
                GROUP BY bi.bid
            ) AS i ON i.bid = b.bid ORDER BY b.bid"""
        ).fetchall()
        width = len(THEIRS_COLUMNS)
        return [
            Batch(Theirs(*row[:width]), row[width], row[width + 1], tuple(row[width + 2] or ()))
            for row in rows
        ]

    def _join(self) -> None:
        mine, yours = _KEYS[self._lead]
        self._repeated("t_keys", "lines", yours)
        # Attempts' IDs are a primary key; their short forms may collide, a bank's may repeat.
        if self._lead is How.REFERENCE:
            self._db.execute("CREATE TEMP TABLE o_keys (key VARCHAR)")
        else:
            self._repeated("o_keys", "o_all", mine)
        self._db.execute(
            "CREATE TEMP TABLE keys AS SELECT key FROM t_keys UNION SELECT key FROM o_keys"
        )
        # What agrees has the same digest on both sides; ours and theirs are never in memory whole,
        # only the digests of one of them. Carried rows and repeated keys are left to the pool, and
        # so are their counterparts.
        parts = max(1, -(-max(self.lines, self.ours) // (self._memory_mb * _ROWS_A_MB)))
        single = "carried = '' AND {} NOT IN (SELECT key FROM keys)"
        with_t = f"SELECT {_THEIRS} FROM lines WHERE {single.format(yours)}"
        with_o = f"SELECT {_OURS} FROM o_all WHERE {single.format(mine)}"
        t_digest, o_digest = _DIGESTS_THEIRS.format(yours), _DIGESTS_OURS.format(mine)
        self._db.execute(f"CREATE TEMP TABLE pt AS SELECT CAST(0 AS BIGINT) AS tid, * FROM"
                         f" ({with_t}) LIMIT 0")  # fmt: skip
        self._db.execute(f"CREATE TEMP TABLE po AS SELECT CAST(0 AS BIGINT) AS oid, * FROM"
                         f" ({with_o}) LIMIT 0")  # fmt: skip
        for part in range(parts):
            self._apart("pt", with_t, t_digest, with_o, o_digest, part, parts)
        self._db.execute(
            f"""INSERT INTO pt SELECT 0, * FROM (
                SELECT {_THEIRS} FROM lines
                WHERE carried <> '' OR {yours} IN (SELECT key FROM keys)
                UNION ALL SELECT {_THEIRS} FROM batch_lines
                WHERE bid NOT IN (SELECT bid FROM batch_items))"""
        )
        # What was refused is of interest only where the bank has a line of it.
        with_o += f" AND (expect <> 'nothing' OR {mine} IN (SELECT {yours} FROM pt))"
        for part in range(parts):
            self._apart("po", with_o, o_digest, with_t, t_digest, part, parts)
        self._db.execute(
            f"""INSERT INTO po SELECT 0, {_OURS} FROM o_all
            WHERE carried <> '' OR {mine} IN (SELECT key FROM keys)"""
        )
        self._db.execute("UPDATE pt SET tid = rowid")
        self._db.execute("UPDATE po SET oid = rowid")

    def _apart(
        self, into: str, rows: str, digest: str, others: str, theirs: str, part: int, parts: int
    ) -> None:
        """Rows whose digest the other side does not have, of one part of all digests."""
        here = f"WHERE COALESCE(digest, 0) % {parts} = {part}" if parts > 1 else ""
        self._db.execute(
            f"""INSERT INTO {into} SELECT 0, r.* EXCLUDE digest FROM (
                SELECT * FROM (SELECT *, {digest} AS digest FROM ({rows})) {here}
            ) AS r ANTI JOIN (
                SELECT digest FROM (SELECT {theirs} AS digest FROM ({others})) {here}
            ) AS s ON r.digest = s.digest"""
        )

    def _repeated(self, name: str, source: str, column: str) -> None:
        """Keys that stand more than once: first by their hash, in an eighth of the memory."""
        self._db.execute(
            f"""CREATE TEMP TABLE {name}_hashes AS SELECT hash({column}) AS h FROM {source}
            WHERE {column} <> '' GROUP BY h HAVING count(*) > 1"""
        )
        self._db.execute(
            f"""CREATE TEMP TABLE {name} AS SELECT {column} AS key FROM {source}
            WHERE {column} <> '' AND hash({column}) IN (SELECT h FROM {name}_hashes)
            GROUP BY key HAVING count(*) > 1"""
        )

    def _plausible(self) -> None:
        apart = max(
            self._one("SELECT count(*) FROM po WHERE carried = ''"),
            self._one("SELECT count(*) FROM pt WHERE carried = ''"),
        )
        if is_implausible(apart, max(self.ours, self.lines), self._limits):
            raise Implausible(
                f"{apart} of {self.ours} attempts and {self.lines} lines differ: the statement is"
                " partial, or not of this day"
            )

    def _match(self) -> None:
        self._db.execute("CREATE TEMP TABLE links (oid BIGINT, tid BIGINT, how VARCHAR)")
        self._link(How.REFERENCE, "o.attempt_id = t.reference")
        self._link(
            How.SHORT_REFERENCE,
            "o.short_reference = t.short_reference AND t.short_reference <> ''"
            " AND (t.reference = '' OR o.amount = t.amount)",
        )
        self._link(
            How.ORIGINAL,
            "o.original_id = t.reference AND t.reference <> '' AND o.kind = t.kind"
            " AND o.amount = t.amount AND t.kind IN ('void', 'refund')",
        )
        self._link(
            How.BANK_REFERENCE,
            "o.bank_reference = t.bank_reference AND t.bank_reference <> ''"
            " AND ((t.reference = '' AND t.short_reference = '') OR o.amount = t.amount)",
        )
        self._guess()

    def _link(self, how: How, condition: str) -> None:
        """One to one: the best line of each attempt, the best attempt of each line."""
        for _ in range(_ROUNDS_MAX):
            made = self._one(
                f"""INSERT INTO links SELECT oid, tid, '{how}' FROM (
                    SELECT o.oid, t.tid,
                        row_number() OVER (PARTITION BY o.oid ORDER BY {_BETTER}) AS of_ours,
                        row_number() OVER (PARTITION BY t.tid ORDER BY {_BETTER}) AS of_theirs
                    FROM po AS o JOIN pt AS t ON {condition}
                    WHERE o.oid NOT IN (SELECT oid FROM links)
                        AND t.tid NOT IN (SELECT tid FROM links)
                ) WHERE of_ours = 1 AND of_theirs = 1"""
            )
            if not made:
                return

    def _guess(self) -> None:
        """Without any reference: the only one of its amount near that time, each way."""
        limits = self._limits
        self._db.execute(
            f"""INSERT INTO links WITH
            o AS (SELECT * FROM po AS o WHERE {_LINE} AND bank_reference = ''
                AND happened_at IS NOT NULL AND abs(amount) <= {int(limits.guess_amount_max)}
                AND oid NOT IN (SELECT oid FROM links)),
            t AS (SELECT * FROM pt WHERE reference = '' AND short_reference = ''
                AND status = 'booked' AND happened_at IS NOT NULL
                AND tid NOT IN (SELECT tid FROM links)),
            few AS (SELECT kind, amount, currency FROM (
                SELECT kind, amount, currency, 1 AS mine, 0 AS yours FROM o
                UNION ALL SELECT kind, amount, currency, 0, 1 FROM t
            ) GROUP BY ALL HAVING sum(mine) BETWEEN 1 AND {_ALIKE_MAX}
                AND sum(yours) BETWEEN 1 AND {_ALIKE_MAX}),
            near AS (SELECT o.oid, t.tid FROM few
                JOIN o USING (kind, amount, currency) JOIN t USING (kind, amount, currency)
                WHERE abs(epoch(o.happened_at) - epoch(t.happened_at))
                    <= {int(limits.guess_window_s)})
            SELECT oid, tid, '{How.HEURISTIC}' FROM near
            WHERE oid IN (SELECT oid FROM near GROUP BY oid HAVING count(*) = 1)
                AND tid IN (SELECT tid FROM near GROUP BY tid HAVING count(*) = 1)"""
        )

    def _fetch(self, pool: Pool) -> None:
        cursor = self._db.execute(f"SELECT oid, {_OURS} FROM po")
        for number, *values in cursor.fetchall():
            pool.ours[number] = Ours(*values)
        cursor = self._db.execute(f"SELECT tid, {_THEIRS} FROM pt")
        for number, *values in cursor.fetchall():
            pool.theirs[number] = Theirs(*values)
        links = self._db.execute("SELECT oid, tid, how FROM links ORDER BY tid").fetchall()
        pool.links = [(oid, tid, How(how)) for oid, tid, how in links]
        # Lines left over may name, by another key, an attempt that agreed with its own line.
        self._db.execute(
            "CREATE TEMP TABLE over AS SELECT tid, reference, short_reference FROM pt"
            " WHERE tid NOT IN (SELECT tid FROM links) AND kind <> 'batch' AND status = 'booked'"
            " AND (reference <> '' OR short_reference <> '')"
        )
        if not self._one("SELECT count(*) FROM over"):
            return
        for mine, yours in (_KEYS[How.SHORT_REFERENCE], _KEYS[How.REFERENCE]):
            rows = self._db.execute(
                f"""SELECT t.tid, {_prefixed("o", OURS_COLUMNS)} FROM all_ours AS o
                JOIN over AS t ON o.{mine} = nullif(t.{yours}, '')"""
            ).fetchall()
            pool.known |= {tid: Ours(*values) for tid, *values in rows}

    def _fee_differences(self) -> list[FeeDifference]:
        tiers = () if self._policy.fees_apart else self._policy.fees
        if not self._policy.fees:
            return []
        expected = fee_sql(tiers)
        # A fee of its own is agreed only where fees stand apart; there `rules` compares the sums.
        charged = "CASE kind WHEN 'fee' THEN -amount ELSE fee END"
        listed = "kind NOT IN ('batch', 'fee')" if self._policy.fees_apart else "kind <> 'batch'"
        wrong = (
            f"FROM (SELECT *, {charged} AS charged, {expected} AS expected FROM all_theirs"
            f" WHERE status = 'booked' AND carried = '' AND {listed}) WHERE charged <> expected"
        )
        if self._one(f"SELECT count(*) {wrong}") <= self._limits.fee_breaks_max:
            rows = self._db.execute(f"SELECT {_THEIRS}, expected, charged {wrong} ORDER BY line_no")
            return [
                FeeDifference(line, line.kind, line.currency, row[-2], row[-1])
                for row in rows.fetchall()
                if (line := Theirs(*row[:-2]))
            ]
        grouped = self._db.execute(
            "SELECT kind, currency, CAST(sum(expected) AS BIGINT), CAST(sum(charged) AS BIGINT),"
            f" count(*) {wrong} GROUP BY kind, currency ORDER BY kind, currency"
        )
        return [FeeDifference(None, *row) for row in grouped.fetchall()]

    def _sums(self, pool: Pool) -> tuple[Sums, ...]:
        """Of the bulk by subtraction: what is not in the pool agreed."""
        figures: dict[str, dict[str, int]] = {}

        def add(sql: str, *names: str) -> None:
            for currency, *values in self._db.execute(sql).fetchall():
                of = figures.setdefault(currency, {})
                of.update(zip(names, map(int, values), strict=True))

        fee = fee_sql(self._policy.fees)
        add(f"SELECT currency, count(*), sum(amount) FROM all_ours AS o WHERE {_LINE}"
            " GROUP BY currency", "ours", "ours_amount")  # fmt: skip
        add("SELECT currency, count(*), sum(amount) FROM all_theirs WHERE kind <> 'fee'"
            " AND status = 'booked' GROUP BY currency", "theirs", "theirs_amount")  # fmt: skip
        add("SELECT currency, count(*), sum(amount) FROM all_theirs WHERE kind <> 'fee'"
            " AND status = 'booked' AND carried <> '' GROUP BY currency",
            "carried", "carried_amount")  # fmt: skip
        add("SELECT currency, sum(fee + CASE kind WHEN 'fee' THEN -amount ELSE 0 END),"
            f" sum(CASE WHEN kind IN ('fee', 'batch') THEN 0 ELSE {fee} END) FROM all_theirs"
            " WHERE status = 'booked' AND carried = '' GROUP BY currency",
            "fees_charged", "fees_expected")  # fmt: skip
        add(f"SELECT currency, count(*), sum(amount) FROM po AS o WHERE {_LINE}"
            " GROUP BY currency", "pooled", "pooled_amount")  # fmt: skip
        add("SELECT o.currency, count(*), sum(o.amount) FROM all_ours AS o JOIN batch_items"
            " USING (attempt_id) GROUP BY o.currency",
            "matched_in_batches", "matched_in_batches_amount")  # fmt: skip
        for name, how in (("linked", "<>"), ("guessed", "=")):
            add(f"SELECT o.currency, count(*), sum(o.amount) FROM links AS l JOIN po AS o USING"
                f" (oid) JOIN pt AS t USING (tid) WHERE l.how {how} '{How.HEURISTIC}' AND {_LINE}"
                f" AND {_AGREES} GROUP BY o.currency", name, f"{name}_amount")  # fmt: skip
        return tuple(_sums_of(currency, figures[currency]) for currency in sorted(figures))


def _sums_of(currency: str, of: Mapping[str, int]) -> Sums:
    def exact(end: str) -> int:
        bulk = of.get(f"ours{end}", 0) - of.get(f"pooled{end}", 0)
        return bulk - of.get(f"matched_in_batches{end}", 0) + of.get(f"linked{end}", 0)

    given = (
        "ours", "ours_amount", "theirs", "theirs_amount", "carried", "carried_amount",
        "matched_in_batches",
        "matched_in_batches_amount", "fees_expected", "fees_charged",
    )  # fmt: skip
    return Sums(
        currency,
        **{name: of.get(name, 0) for name in given},
        matched_exactly=exact(""),
        matched_exactly_amount=exact("_amount"),
        matched_heuristically=of.get("guessed", 0),
        matched_heuristically_amount=of.get("guessed_amount", 0),
    )


def fee_sql(tiers: Sequence[FeeTier]) -> str:
    """rules.fee_of of the columns kind and amount."""
    cases = []
    for tier in tiers:
        kinds = ", ".join(f"'{_quoted(kind)}'" for kind in tier.kinds)
        fits = f"kind IN ({kinds})" if tier.kinds else "false"
        if tier.up_to is not None:
            fits += f" AND abs(amount) <= {int(tier.up_to)}"
        fee = f"((abs(amount) * {int(tier.basis_points)} + 5000) // 10000 + {int(tier.fixed)})"
        fee = f"greatest({fee}, {int(tier.at_least)})"
        if tier.at_most is not None:
            fee = f"least({fee}, {int(tier.at_most)})"
        cases.append(f"WHEN {fits} THEN {fee}")
    return f"CASE {' '.join(cases)} ELSE 0 END" if cases else "0"


def _quoted(text: object) -> str:
    return str(text).replace("'", "''")


def _prefixed(alias: str, columns: Mapping[str, str]) -> str:
    return ", ".join(f"{alias}.{name}" for name in columns)
