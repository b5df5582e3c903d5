-- What nixsnap remembers about its snapshots: schema version 1.
--
-- Version history (PRAGMA user_version; schema.py holds the steps between versions)
--   1  first version: snapshot, closure
--
-- Text is UTF-8 and compares bytewise (the BINARY collation), so that walks come in the order of containerd's bbolt
-- store. Times are nanoseconds since 1970-01-01 UTC. Keys, labels and store paths are what clients and images chose:
-- any text.

-- Tells our file from any other SQLite database: "nixs".
PRAGMA application_id = 0x6e697873;

-- One row for each active, view or committed snapshot.
CREATE TABLE snapshot (
  -- Names the directories of the snapshot. AUTOINCREMENT: an id is never given twice, whatever was removed.
  id         INTEGER PRIMARY KEY AUTOINCREMENT,
  -- The key of an active or view snapshot, the name of a committed one: one name space.
  key        TEXT    NOT NULL UNIQUE CHECK (key <> ''),
  -- containerd's snapshots.Kind: 1 view, 2 active, 3 committed.
  kind       INTEGER NOT NULL CHECK (kind IN (1, 2, 3)),
  -- The committed snapshot that this one lies upon; NULL at the bottom of a chain.
  parent_id  INTEGER REFERENCES snapshot (id) ON DELETE RESTRICT,
  -- A JSON object of strings, without empty values; NULL when there are none. One column, not a table of rows: labels are
  -- always read and written together, and filters look at every snapshot anyway (docs/metadata.md has the measurement).
  labels     TEXT,
  -- When Prepare, View or Commit made it what it is.
  created_ns INTEGER NOT NULL,
  -- When its labels were last written.
  updated_ns INTEGER NOT NULL,
  -- Inodes of its own layer; known from Commit on, zero before.
  inodes     INTEGER NOT NULL DEFAULT 0,
  -- Allocated bytes of its own layer; known from Commit on, zero before.
  size_bytes INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Whether a snapshot has children: asked, by the foreign key, at each removal.
CREATE INDEX snapshot_parent ON snapshot (parent_id) WHERE parent_id IS NOT NULL;

-- The last id that was allocated, also to snapshots that never came to be. SQLite adds a row at the first insert; it is
-- put here so that Writer.allocate_id can count on it.
INSERT INTO sqlite_sequence (name, seq) VALUES ('snapshot', 0);

-- The store paths that a nix layer names; snapshots that are not nix layers have no row.
CREATE TABLE closure (
  snapshot_id  INTEGER PRIMARY KEY REFERENCES snapshot (id) ON DELETE CASCADE,
  -- The store path of the closureInfo output that lists the closure; NULL when the paths were named one by one or inferred.
  closure_info TEXT,
  -- 1 when the closure was read off the layer's own nix/store directory at Commit, 0 when annotations named it.
  inferred     INTEGER NOT NULL CHECK (inferred IN (0, 1)),
  -- The store paths, sorted, one a line. One value, not a row each: closures are written once and read whole
  -- (docs/metadata.md has the measurement for 10,000 paths).
  store_paths  TEXT    NOT NULL
) STRICT;
