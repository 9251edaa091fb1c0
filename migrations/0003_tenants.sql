-- Who is answered, and how. In the global database alone: nothing in here is about a caller.
-- Only adds: a program that knows 0002 alone goes on answering every number with its built-in tenant.

CREATE TABLE tenants (
    name       TEXT NOT NULL PRIMARY KEY,
    content    TEXT NOT NULL,              -- JSON object: the fields of app/call/plan.py that the tenant sets
    changed_ms INTEGER NOT NULL            -- Unix ms
) STRICT, WITHOUT ROWID;

-- A number is answered for one tenant, whoever imports what at the same time. A table of its own, so that it is known
-- whose number it is also when a tenant's content cannot be read.
CREATE TABLE tenant_numbers (
    number TEXT NOT NULL PRIMARY KEY,      -- E.164
    tenant TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- One row for each import, numbered without a gap: the newest one tells a server whether it has to read again, and
-- of two imports at once the second is refused by the key.
CREATE TABLE tenant_changes (
    change     INTEGER NOT NULL PRIMARY KEY,
    changed_ms INTEGER NOT NULL            -- Unix ms
) STRICT, WITHOUT ROWID;
