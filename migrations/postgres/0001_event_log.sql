-- The event log. Unsigned 64-bit numbers are stored bit-cast in bigint; seqs, offsets and epochs never get
-- near the sign bit.

-- One row a partition: the fence and the head that every append compares and sets. Small and hot: half of
-- each page is left for HOT updates, and dead versions are swept by count, not by share.
CREATE TABLE partition (
    p           smallint    NOT NULL PRIMARY KEY,
    epoch       bigint      NOT NULL DEFAULT 0,
    head        bigint      NOT NULL DEFAULT 0,
    published   bigint      NOT NULL DEFAULT 0,
    -- Liveness only, never safety: the epoch is the fence.
    owner       text,
    address     text,
    lease_until timestamptz
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

INSERT INTO partition (p) SELECT generate_series(0, 270);

-- One row a history of a document. It is there if and only if the history has an entry.
CREATE TABLE document (
    incarnation bigint   NOT NULL PRIMARY KEY,
    name        text     NOT NULL,
    p           smallint NOT NULL,
    strategy    smallint NOT NULL,
    created_ms  bigint   NOT NULL,
    retired_ms  bigint
);

CREATE UNIQUE INDEX document_current ON document (name) WHERE retired_ms IS NULL;

-- One row a change. The incarnation is unique over all documents, so the name is not repeated here.
CREATE TABLE entry (
    p           smallint NOT NULL,
    incarnation bigint   NOT NULL,
    seq         bigint   NOT NULL,
    "offset"    bigint   NOT NULL,
    replica     bigint   NOT NULL,
    counter     bigint   NOT NULL,
    base        bigint   NOT NULL,
    hash        bytea    NOT NULL,
    chain       bytea    NOT NULL,
    time_ms     bigint   NOT NULL,
    format      integer  NOT NULL,
    subject     text,
    body        bytea    NOT NULL,
    PRIMARY KEY (p, incarnation, seq),
    UNIQUE (p, incarnation, replica, counter),
    UNIQUE (p, "offset")
);

-- Which nodes are alive.
CREATE TABLE member (
    node    text        NOT NULL PRIMARY KEY,
    address text        NOT NULL,
    until   timestamptz NOT NULL
);

-- Durable places of the workers that follow partitions.
CREATE TABLE follower (
    name        text        NOT NULL,
    p           smallint    NOT NULL,
    cursor      bigint      NOT NULL,
    epoch       bigint      NOT NULL,
    owner       text        NOT NULL,
    lease_until timestamptz NOT NULL,
    PRIMARY KEY (name, p)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
