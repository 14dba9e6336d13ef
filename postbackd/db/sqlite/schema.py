"""The tables with their comments, and the migrations of older files.

Times are ISO 8601 UTC text with milliseconds (`2026-11-22T10:24:50.123Z`): they sort, and SQLite's
date functions read them. Money is whole micros (10^-6) in integers; rates are decimal text.
"""

import sqlite3


def decimal_sql(column: str) -> str:
    """Write a column of micros as decimal text without trailing zeros: exact, no float."""
    digits = f"printf('%d.%06d', abs({column}) / 1000000, abs({column}) % 1000000)"
    sign = f"CASE WHEN {column} < 0 THEN '-' ELSE '' END"
    return f"({sign} || rtrim(rtrim({digits}, '0'), '.'))"


def sum_sql(column: str, condition: str = "true") -> str:
    """Write the sum of a column of micros as two columns, for `rates.sum_of_halves`.

    Ten amounts near the limit overflow SQLite's 64-bit sum, which raises; in halves millions fit.
    """
    chosen = f"FILTER (WHERE {condition})"
    return f"sum({column} / 1000000) {chosen}, sum({column} % 1000000) {chosen}"


_MIGRATION_1 = f"""
-- One row: what this database was made for. Amounts are in this currency for ever.
CREATE TABLE tracker (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    currency TEXT NOT NULL,
    -- /health writes here, so that "ok" means that a write was synced. Null before the first.
    health_checked_at TEXT
) STRICT;

-- A campaign groups clicks. `cost_model` null: not known, so a postback's cost counts.
CREATE TABLE campaigns (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE CHECK (name <> ''),
    cost_model TEXT CHECK (cost_model IN ('cpc', 'cpm', 'cpa', 'revshare', 'none'))
) STRICT;

-- An offer is what an advertiser pays for. Rebills are refused unless it allows them.
CREATE TABLE offers (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE CHECK (name <> ''),
    allow_rebills INTEGER NOT NULL DEFAULT 0 CHECK (allow_rebills IN (0, 1))
) STRICT;

-- A click is a visit that an offer may pay for. Other programs may write here (docs/schema.md).
-- Null: not known. `cost_model` beats the campaign's.
CREATE TABLE clicks (
    id INTEGER PRIMARY KEY,
    subid TEXT NOT NULL UNIQUE CHECK (subid <> '' AND length(subid) <= 255),
    campaign_id INTEGER REFERENCES campaigns (id),
    offer_id INTEGER REFERENCES offers (id),
    clicked_at TEXT CHECK (clicked_at GLOB '????-??-??T??:??:??*Z'),
    cost_model TEXT CHECK (cost_model IN ('cpc', 'cpm', 'cpa', 'revshare', 'none')),
    sub_ids TEXT NOT NULL DEFAULT '{{}}' CHECK (json_valid(sub_ids)),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;

-- A conversion is what a click earned, known by its click and the network's transaction id ('' if
-- none was sent). amount and currency are what was sent; payout is in the tracker's currency and
-- null while no rate is known. amount_day is the day the amount was received: that day's rate
-- counts; null where there is nothing to convert, ever. Cost likewise.
-- sale_at: when it first was money.
CREATE TABLE conversions (
    id INTEGER PRIMARY KEY,
    click_id INTEGER NOT NULL REFERENCES clicks (id),
    tid TEXT NOT NULL CHECK (length(tid) <= 255),
    status TEXT NOT NULL CHECK (status IN ('lead', 'sale', 'rejected', 'rebill')),
    original_status TEXT,
    previous_status TEXT CHECK (previous_status IN ('lead', 'sale', 'rejected', 'rebill')),
    amount_micros INTEGER,
    currency TEXT CHECK (currency IS NULL OR amount_micros IS NOT NULL),
    amount_day TEXT CHECK (amount_day IS NULL OR amount_micros IS NOT NULL),
    payout_micros INTEGER CHECK (payout_micros IS NULL OR rate IS NOT NULL),
    rate TEXT,
    rate_day TEXT,
    rate_source TEXT,
    cost_amount_micros INTEGER,
    cost_currency TEXT CHECK (cost_currency IS NULL OR cost_amount_micros IS NOT NULL),
    cost_day TEXT CHECK (cost_day IS NULL OR cost_amount_micros IS NOT NULL),
    cost_micros INTEGER CHECK (cost_micros IS NULL OR cost_rate IS NOT NULL),
    cost_rate TEXT,
    cost_rate_day TEXT,
    cost_rate_source TEXT,
    campaign_id INTEGER REFERENCES campaigns (id),
    offer_id INTEGER REFERENCES offers (id),
    network TEXT,
    sub_ids TEXT NOT NULL DEFAULT '{{}}' CHECK (json_valid(sub_ids)),
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    sale_at TEXT,
    UNIQUE (click_id, tid)
) STRICT;

-- `report` and `conversions --since` go by this.
CREATE INDEX conversions_by_time ON conversions (created_at);
-- What waits for a rate; empty most of the time.
CREATE INDEX conversions_without_payout ON conversions (currency, amount_day)
    WHERE payout_micros IS NULL AND amount_day IS NOT NULL;
CREATE INDEX conversions_without_cost ON conversions (cost_currency, cost_day)
    WHERE cost_micros IS NULL AND cost_day IS NOT NULL;

-- Every postback under a right key, whatever came of it. Rows are only appended; what came of a
-- parked or a replayed one later stands in settled_*, and its conversion is filled in then.
-- `query` is without the key, with a POST body's fields and a cookie's click id. `tid` is ''
-- where none was sent; `original_status` null where none was sent.
CREATE TABLE postbacks (
    id INTEGER PRIMARY KEY,
    received_at TEXT NOT NULL,
    source TEXT NOT NULL CHECK (source IN ('http', 'pixel', 'import', 'replay')),
    method TEXT,
    remote_addr TEXT,
    query TEXT NOT NULL,
    subid TEXT,
    tid TEXT NOT NULL DEFAULT '',
    original_status TEXT,
    verdict TEXT NOT NULL CHECK (verdict IN (
        'recorded', 'updated', 'repeated', 'refused', 'ignored', 'parked', 'unmapped', 'invalid')),
    reason TEXT NOT NULL,
    warnings TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(warnings)),
    conversion_id INTEGER REFERENCES conversions (id),
    network TEXT,
    settled_at TEXT,
    settled_verdict TEXT CHECK (settled_verdict IN (
        'recorded', 'updated', 'repeated', 'refused', 'ignored', 'unmapped', 'invalid')),
    settled_reason TEXT
) STRICT;

-- `log --since` goes by this.
CREATE INDEX postbacks_by_time ON postbacks (received_at);
-- `log --subid` asks the two that follow: by the click's conversions, and for what has none. Both
-- stay cheap where it counts: a new sale's conversion has the highest id yet, so its entry goes at
-- the end, while an index over random click ids of all rows would cost a tenth of the speed.
CREATE INDEX postbacks_by_conversion ON postbacks (conversion_id) WHERE conversion_id IS NOT NULL;
CREATE INDEX postbacks_without_conversion ON postbacks (subid) WHERE conversion_id IS NULL;
-- What waits for its click.
CREATE INDEX postbacks_parked ON postbacks (subid, id)
    WHERE verdict = 'parked' AND settled_at IS NULL;

CREATE TRIGGER postbacks_are_only_appended BEFORE UPDATE OF
    id, received_at, source, method, remote_addr, query, subid, tid, original_status, verdict,
    reason, warnings, network ON postbacks
BEGIN
    SELECT RAISE(ABORT, 'postbacks are only appended to');
END;

-- Every change of a conversion, in order: what it was from then on, and the postback that did it
-- (null for a conversion to the tracker's currency that came with a late rate).
CREATE TABLE conversion_history (
    conversion_id INTEGER NOT NULL REFERENCES conversions (id),
    seq INTEGER NOT NULL,
    at TEXT NOT NULL,
    change TEXT NOT NULL CHECK (change IN ('recorded', 'updated', 'converted')),
    postback_id INTEGER,
    status TEXT NOT NULL,
    original_status TEXT,
    tid TEXT NOT NULL,
    amount_micros INTEGER,
    currency TEXT,
    payout_micros INTEGER,
    rate TEXT,
    rate_day TEXT,
    rate_source TEXT,
    cost_micros INTEGER,
    PRIMARY KEY (conversion_id, seq)
) STRICT, WITHOUT ROWID;

-- What one unit of a currency was worth in the tracker's, on a day, by a source. 'hand' beats the
-- others until its ended_at. Rows stay for ever.
CREATE TABLE rates (
    id INTEGER PRIMARY KEY,
    currency TEXT NOT NULL,
    day TEXT NOT NULL CHECK (day GLOB '????-??-??'),
    source TEXT NOT NULL,
    rate TEXT NOT NULL,
    created_at TEXT NOT NULL,
    ended_at TEXT
) STRICT;

CREATE INDEX rates_by_day ON rates (currency, day);
CREATE UNIQUE INDEX rates_fetched ON rates (currency, day, source) WHERE source <> 'hand';
CREATE UNIQUE INDEX rates_by_hand ON rates (currency) WHERE source = 'hand' AND ended_at IS NULL;

-- Clicks that have come, whoever wrote them, and have postbacks parked for them. The service
-- empties this table within five seconds, or with the next postback.
CREATE TABLE due_clicks (
    click_id INTEGER PRIMARY KEY REFERENCES clicks (id) ON DELETE CASCADE
) STRICT;

CREATE TRIGGER a_click_comes AFTER INSERT ON clicks
BEGIN
    INSERT OR IGNORE INTO due_clicks (click_id) SELECT NEW.id WHERE EXISTS (
        SELECT 1 FROM postbacks
        WHERE subid = NEW.subid AND verdict = 'parked' AND settled_at IS NULL);
END;

CREATE TRIGGER a_click_is_renamed AFTER UPDATE OF subid ON clicks
BEGIN
    INSERT OR IGNORE INTO due_clicks (click_id) SELECT NEW.id WHERE EXISTS (
        SELECT 1 FROM postbacks
        WHERE subid = NEW.subid AND verdict = 'parked' AND settled_at IS NULL);
END;

-- Conversions for people and scripts: names instead of ids, decimals instead of micros.
CREATE VIEW conversions_view AS
SELECT conversions.id, clicks.subid, conversions.tid, conversions.status,
    conversions.original_status, conversions.previous_status,
    CASE WHEN amount_micros IS NOT NULL THEN {decimal_sql("amount_micros")} END AS amount,
    conversions.currency,
    CASE WHEN payout_micros IS NOT NULL THEN {decimal_sql("payout_micros")} END AS payout,
    conversions.rate, conversions.rate_day, conversions.rate_source,
    CASE WHEN cost_micros IS NOT NULL THEN {decimal_sql("cost_micros")} END AS cost,
    campaigns.name AS campaign, offers.name AS offer, conversions.network, conversions.sub_ids,
    conversions.created_at, conversions.updated_at, conversions.sale_at
FROM conversions
JOIN clicks ON clicks.id = conversions.click_id
LEFT JOIN campaigns ON campaigns.id = conversions.campaign_id
LEFT JOIN offers ON offers.id = conversions.offer_id;
"""

_MIGRATION_2 = """
-- What a change was may be 'recomputed' now: the payout, or the cost, at another day's rate. And
-- the rate of the cost stands beside it, so that recomputing loses nothing; null in older rows.
-- SQLite cannot change a CHECK: the table is made anew, and its rows moved.
CREATE TABLE conversion_history_2 (
    conversion_id INTEGER NOT NULL REFERENCES conversions (id),
    seq INTEGER NOT NULL,
    at TEXT NOT NULL,
    change TEXT NOT NULL CHECK (change IN ('recorded', 'updated', 'converted', 'recomputed')),
    postback_id INTEGER,
    status TEXT NOT NULL,
    original_status TEXT,
    tid TEXT NOT NULL,
    amount_micros INTEGER,
    currency TEXT,
    payout_micros INTEGER,
    rate TEXT,
    rate_day TEXT,
    rate_source TEXT,
    cost_micros INTEGER,
    cost_rate TEXT,
    cost_rate_day TEXT,
    cost_rate_source TEXT,
    PRIMARY KEY (conversion_id, seq)
) STRICT, WITHOUT ROWID;

INSERT INTO conversion_history_2 (
    conversion_id, seq, at, change, postback_id, status, original_status, tid, amount_micros,
    currency, payout_micros, rate, rate_day, rate_source, cost_micros)
SELECT conversion_id, seq, at, change, postback_id, status, original_status, tid, amount_micros,
    currency, payout_micros, rate, rate_day, rate_source, cost_micros
FROM conversion_history;

DROP TABLE conversion_history;

ALTER TABLE conversion_history_2 RENAME TO conversion_history;

-- What a source said and was not believed. `rate` is in the tracker's currency, '' where the
-- document gave no usable number; `reason` is the sentence for people; `days_in_row`: for how many
-- of the source's days, this one included, it had said the same. accepted_at: when it was taken
-- after all, by hand or on the third day.
CREATE TABLE refused_rates (
    id INTEGER PRIMARY KEY,
    currency TEXT NOT NULL,
    day TEXT NOT NULL CHECK (day GLOB '????-??-??'),
    source TEXT NOT NULL,
    rate TEXT NOT NULL,
    reason TEXT NOT NULL,
    days_in_row INTEGER NOT NULL CHECK (days_in_row >= 1),
    created_at TEXT NOT NULL,
    accepted_at TEXT,
    UNIQUE (currency, source, day, rate)
) STRICT;

-- How it went when a source was last asked. `trouble` is the sentence, null where all went well;
-- `answered_at` and `day` are of its last good document, null before the first.
CREATE TABLE rate_sources (
    source TEXT PRIMARY KEY,
    asked_at TEXT NOT NULL,
    answered_at TEXT,
    day TEXT,
    trouble TEXT
) STRICT, WITHOUT ROWID;

-- One row: who fetches the rates now, if anybody (the lease: a holder whose time has run out holds
-- nothing), and when they are due again (null: at once). `asked` is a fingerprint of the sources
-- that were asked last: others in the config are due at once. `tries`: how many times in a row
-- it was tried without full success.
CREATE TABLE rate_rounds (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    holder TEXT,
    held_until TEXT,
    due_at TEXT,
    asked TEXT,
    tries INTEGER NOT NULL DEFAULT 0
) STRICT;

INSERT INTO rate_rounds (id) VALUES (1);
"""

# CHECKs of the tables that every postback writes, as migrations 1 and 2 spell them. For `x IN (…)`
# SQLite builds a list anew with every row, and most JSON is the empty default: together a sixth
# of a postback's time.
_SLOW_CHECKS = (
    "status IN ('lead', 'sale', 'rejected', 'rebill')",
    "previous_status IN ('lead', 'sale', 'rejected', 'rebill')",
    "source IN ('http', 'pixel', 'import', 'replay')",
    "verdict IN (\n        'recorded', 'updated', 'repeated', 'refused', 'ignored', 'parked',"
    " 'unmapped', 'invalid')",
    "settled_verdict IN (\n        'recorded', 'updated', 'repeated', 'refused', 'ignored',"
    " 'unmapped', 'invalid')",
    "change IN ('recorded', 'updated', 'converted', 'recomputed')",
    "json_valid(sub_ids)",
    "json_valid(warnings)",
)


def _quicken(check: str) -> str:
    """Write a CHECK with the same meaning that takes less time."""
    if check.startswith("json_valid"):
        column = check[len("json_valid(") : -1]
        empty = "[]" if column == "warnings" else "{}"
        return f"{column} = '{empty}' OR {check}"
    column, _, values = check.rstrip(")").partition(" IN (")
    return " OR ".join(f"{column} = {value.strip()}" for value in values.split(","))


def _sql_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _quicken_table(name: str) -> str:
    sql = "sql"
    for check in _SLOW_CHECKS:
        was, becomes = (_sql_text(f"CHECK ({text})") for text in (check, _quicken(check)))
        sql = f"replace({sql}, {was}, {becomes})"
    return f"UPDATE sqlite_master SET sql = {sql} WHERE type = 'table' AND name = '{name}';"


_MIGRATION_3 = f"""
-- The rows satisfy the CHECKs already, and stay where they are: only the words change, which is
-- what SQLite's documentation of ALTER TABLE has this pragma for. Moving ten million rows would
-- take minutes and twice the disk.
PRAGMA writable_schema = ON;
{_quicken_table("conversions")}
{_quicken_table("postbacks")}
{_quicken_table("conversion_history")}
PRAGMA writable_schema = RESET;

-- A replay is a postback of its own (source 'replay'); replay_of is the id of the one that it put
-- through again, which may have been purged since. Null for all others.
ALTER TABLE postbacks ADD COLUMN replay_of INTEGER;
CREATE INDEX postbacks_by_original ON postbacks (replay_of) WHERE replay_of IS NOT NULL;

-- `report` counts clicks by this.
CREATE INDEX clicks_by_time ON clicks (coalesce(clicked_at, created_at));

-- When a key last opened an address of ours. Keys themselves are kept nowhere: `fingerprint` is a
-- hash of the key with this database's salt.
ALTER TABLE tracker ADD COLUMN key_salt TEXT NOT NULL DEFAULT '';
CREATE TABLE key_uses (
    fingerprint TEXT PRIMARY KEY,
    last_used_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;
"""

_MIGRATION_4 = """
-- Requests that the server refused before the receiver saw them (400, 408, 414, 431 ...), counted
-- by the hour (`2026-11-22T10`, UTC) and by each process for itself (`process` is a random word).
-- `reason` is one of a fixed list, never anything that was sent. `last_address` is the other end of
-- the connection as far as it may be kept, '' for a unix socket. Rows go after seven days.
CREATE TABLE refused_requests (
    hour TEXT NOT NULL,
    status INTEGER NOT NULL,
    reason TEXT NOT NULL,
    process TEXT NOT NULL,
    requests INTEGER NOT NULL,
    last_at TEXT NOT NULL,
    last_address TEXT NOT NULL,
    PRIMARY KEY (hour, status, reason, process)
) STRICT, WITHOUT ROWID;
"""

_CHANGES_3 = _quicken("change IN ('recorded', 'updated', 'converted', 'recomputed')")
_OFFERS_1 = "allow_rebills INTEGER NOT NULL DEFAULT 0 CHECK (allow_rebills IN (0, 1))"


def _reword_table(name: str, was: str, becomes: str) -> str:
    return (
        f"UPDATE sqlite_master SET sql = replace(sql, {_sql_text(was)}, {_sql_text(becomes)})"
        f" WHERE type = 'table' AND name = '{name}';"
    )


_MIGRATION_5 = f"""
-- offers.allow_rebills is null where it was never set: `[postback] rebills` counts then. And a
-- change of a conversion may be 'forced' now, by an operator whom the rules do not bind. As in 3
-- only the words change.
PRAGMA writable_schema = ON;
{_reword_table("offers", _OFFERS_1, "allow_rebills INTEGER CHECK (allow_rebills IN (0, 1))")}
{_reword_table("conversion_history", _CHANGES_3, f"{_CHANGES_3} OR change = 'forced'")}
PRAGMA writable_schema = RESET;

-- Until now an offer had 0 whether or not somebody had said so, and mostly nobody had. With the
-- default `rebills = no` both come to the same.
UPDATE offers SET allow_rebills = NULL WHERE allow_rebills = 0;

-- An amount that was too large for a wrong rate waits for the right one now; until now it lost the
-- day whose rate counts, and with it the chance. Its day is that of its conversion.
UPDATE conversions SET
    amount_day = CASE WHEN payout_micros IS NULL AND currency IS NOT NULL
        THEN coalesce(amount_day, substr(created_at, 1, 10)) ELSE amount_day END,
    cost_day = CASE WHEN cost_micros IS NULL AND cost_currency IS NOT NULL
        THEN coalesce(cost_day, substr(created_at, 1, 10)) ELSE cost_day END
WHERE (payout_micros IS NULL AND currency IS NOT NULL AND amount_day IS NULL)
    OR (cost_micros IS NULL AND cost_currency IS NOT NULL AND cost_day IS NULL);
"""

_SOURCES_1 = _quicken("source IN ('http', 'pixel', 'import', 'replay')")

_MIGRATION_6 = f"""
-- What came as a body and does not stand in `query`: JSON, multipart, any other type, or a form
-- some of whose names came in the query too. Unpacked where that could be done, else as it came;
-- without keys. Its fields, where it has any, stand in `query`. `body_type` is its Content-Type,
-- null where none was sent. Both null for all else.
ALTER TABLE postbacks ADD COLUMN body BLOB;
ALTER TABLE postbacks ADD COLUMN body_type TEXT;

DROP TRIGGER postbacks_are_only_appended;
CREATE TRIGGER postbacks_are_only_appended BEFORE UPDATE OF
    id, received_at, source, method, remote_addr, query, subid, tid, original_status, verdict,
    reason, warnings, network, replay_of, body, body_type ON postbacks
BEGIN
    SELECT RAISE(ABORT, 'postbacks are only appended to');
END;

-- The traffic source's own click id, and its name. What the click cost, in a currency of its own:
-- both null where that is not known.
ALTER TABLE clicks ADD COLUMN external_id TEXT;
ALTER TABLE clicks ADD COLUMN source TEXT;
ALTER TABLE clicks ADD COLUMN click_cost_micros INTEGER;
ALTER TABLE clicks ADD COLUMN click_cost_currency TEXT
    CHECK ((click_cost_currency IS NULL) = (click_cost_micros IS NULL));

-- A postback may be 'caught' now (by the web server, while the service was down), or an
-- 'operator''s; a change of a conversion an 'operator''s, or 'deleted'. As in 3 only the words
-- change.
PRAGMA writable_schema = ON;
{
    _reword_table(
        "postbacks", _SOURCES_1, f"{_SOURCES_1} OR source = 'caught' OR source = 'operator'"
    )
}
{
    _reword_table(
        "conversion_history",
        f"{_CHANGES_3} OR change = 'forced'",
        f"{_CHANGES_3} OR change = 'forced' OR change = 'operator' OR change = 'deleted'",
    )
}
PRAGMA writable_schema = RESET;
"""


def _view_sql(name: str, condition: str, more: str = "") -> str:
    return f"""
CREATE VIEW {name} AS
SELECT conversions.id, clicks.subid, conversions.tid, conversions.status,
    conversions.original_status, conversions.previous_status,
    CASE WHEN amount_micros IS NOT NULL THEN {decimal_sql("amount_micros")} END AS amount,
    conversions.currency,
    CASE WHEN payout_micros IS NOT NULL THEN {decimal_sql("payout_micros")} END AS payout,
    conversions.rate, conversions.rate_day, conversions.rate_source,
    CASE WHEN cost_micros IS NOT NULL THEN {decimal_sql("cost_micros")} END AS cost,
    campaigns.name AS campaign, offers.name AS offer, conversions.network, conversions.sub_ids,
    conversions.created_at, conversions.updated_at, conversions.sale_at{more}
FROM conversions
JOIN clicks ON clicks.id = conversions.click_id
LEFT JOIN campaigns ON campaigns.id = conversions.campaign_id
LEFT JOIN offers ON offers.id = conversions.offer_id
WHERE {condition};
"""


_MIGRATION_7 = f"""
-- What an operator did with `postback conversions`: the row of `postbacks` (source 'operator') of
-- the last time, and when the conversion was deleted. Null: never. A deleted one is 'rejected', so
-- that no sum of revenue counts it, and keeps its transaction id, so that it is not made again.
ALTER TABLE conversions ADD COLUMN deleted_at TEXT;
ALTER TABLE conversions ADD COLUMN corrected_by INTEGER;
-- Why, in the operator's words; null for all other changes.
ALTER TABLE conversion_history ADD COLUMN reason TEXT;

DROP VIEW conversions_view;
{_view_sql("conversions_view", "deleted_at IS NULL")}
{_view_sql("deleted_conversions_view", "deleted_at IS NOT NULL", ", deleted_at")}
"""

# One script per version, in order; a script that has shipped is never edited again.
MIGRATIONS = (
    _MIGRATION_1,
    _MIGRATION_2,
    _MIGRATION_3,
    _MIGRATION_4,
    _MIGRATION_5,
    _MIGRATION_6,
    _MIGRATION_7,
)
# From this version on the row of `tracker`, written after the scripts, has a random salt.
_FIRST_WITH_SALT = 3


class SchemaError(Exception):
    """The file is a database that this program cannot use; the sentence says why."""


def migrate(db: sqlite3.Connection, currency: str) -> None:
    """Run the missing migrations in one transaction; of two programs at once one runs them.

    A migration that is interrupted changes nothing: SQLite rolls DDL and user_version back too.
    """
    if read_version(db) == len(MIGRATIONS):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        # Read again under the lock: another worker may have migrated just now.
        version = read_version(db)
        if version == 0:
            _refuse_foreign(db)
        for script in MIGRATIONS[version:]:
            _run_script(db, script)
        if version == 0:
            db.execute("INSERT INTO tracker (id, currency) VALUES (1, ?)", (currency,))
        if version < _FIRST_WITH_SALT:
            db.execute("UPDATE tracker SET key_salt = lower(hex(randomblob(16)))")
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def read_version(db: sqlite3.Connection) -> int:
    """Return the number of migrations that the database has; one of a newer program is refused."""
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise SchemaError(
            f"the database has schema {version}, and this program knows up to {len(MIGRATIONS)}:"
            " install the newer version of the program again, or restore an older backup"
        )
    return version


def _refuse_foreign(db: sqlite3.Connection) -> None:
    table = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchone()
    if table is not None:
        raise SchemaError(
            f"the database is another program's (it has a table {table[0]!r} and no schema of"
            " ours): give [db] path the name of a file of its own"
        )


def _run_script(db: sqlite3.Connection, script: str) -> None:
    # Not executescript: it would commit the transaction that makes a migration whole.
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""
