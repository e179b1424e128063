-- The event log; postgres/0001_event_log.sql explains it. Times are milliseconds since the Unix epoch.

CREATE TABLE partition (
    p           INTEGER NOT NULL PRIMARY KEY,
    epoch       INTEGER NOT NULL DEFAULT 0,
    head        INTEGER NOT NULL DEFAULT 0,
    published   INTEGER NOT NULL DEFAULT 0,
    owner       TEXT,
    address     TEXT,
    lease_until INTEGER
) STRICT;

INSERT INTO partition (p)
WITH RECURSIVE number (p) AS (SELECT 0 UNION ALL SELECT p + 1 FROM number WHERE p < 270)
SELECT p FROM number;

CREATE TABLE document (
    incarnation INTEGER NOT NULL PRIMARY KEY,
    name        TEXT    NOT NULL,
    p           INTEGER NOT NULL,
    strategy    INTEGER NOT NULL,
    created_ms  INTEGER NOT NULL,
    retired_ms  INTEGER
) STRICT;

CREATE UNIQUE INDEX document_current ON document (name) WHERE retired_ms IS NULL;

CREATE TABLE entry (
    p           INTEGER NOT NULL,
    incarnation INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    "offset"    INTEGER NOT NULL,
    replica     INTEGER NOT NULL,
    counter     INTEGER NOT NULL,
    base        INTEGER NOT NULL,
    hash        BLOB    NOT NULL,
    chain       BLOB    NOT NULL,
    time_ms     INTEGER NOT NULL,
    format      INTEGER NOT NULL,
    subject     TEXT,
    body        BLOB    NOT NULL,
    PRIMARY KEY (p, incarnation, seq),
    UNIQUE (p, incarnation, replica, counter),
    UNIQUE (p, "offset")
) STRICT;

CREATE TABLE member (
    node    TEXT    NOT NULL PRIMARY KEY,
    address TEXT    NOT NULL,
    until   INTEGER NOT NULL
) STRICT;

CREATE TABLE follower (
    name        TEXT    NOT NULL,
    p           INTEGER NOT NULL,
    cursor      INTEGER NOT NULL,
    epoch       INTEGER NOT NULL,
    owner       TEXT    NOT NULL,
    lease_until INTEGER NOT NULL,
    PRIMARY KEY (name, p)
) STRICT;
