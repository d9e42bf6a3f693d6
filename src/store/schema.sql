CREATE TABLE store_settings (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- Files blobs/<algorithm>/<hex>. One that is being removed is not found any more; its file may be gone already.
CREATE TABLE blobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    digest TEXT NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    allocated INTEGER NOT NULL,
    removing INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    boot TEXT
);
CREATE INDEX blobs_boot ON blobs (boot) WHERE boot IS NOT NULL;

-- Directories snapshots/<id>. state: 0 active, 1 committed, 2 being removed. base: what an active lies on. allocated: what the
-- files that belong to it take on the disk, in bytes; NULL until somebody has looked.
CREATE TABLE trees (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    state INTEGER NOT NULL,
    base INTEGER REFERENCES snapshots ON DELETE CASCADE,
    allocated INTEGER,
    created_at INTEGER NOT NULL
);
CREATE INDEX trees_base ON trees (base) WHERE base IS NOT NULL;
CREATE INDEX trees_state ON trees (state) WHERE state <> 1;

-- Files of `donor` have names in `tree` too. A file counts for the tree it came from, for as long as that lives.
CREATE TABLE loans (
    tree INTEGER NOT NULL REFERENCES trees ON DELETE CASCADE,
    donor INTEGER NOT NULL REFERENCES trees ON DELETE CASCADE,
    PRIMARY KEY (tree, donor)
) WITHOUT ROWID;
CREATE INDEX loans_donor ON loans (donor);

-- tree: what is mounted. layer: the tree its tar is made of. form: 0 the changes of `layer` over the parent, 1 all of `layer`,
-- 2 all of `layer` with its marks. content: hash of the layer without times.
CREATE TABLE snapshots (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    tree INTEGER NOT NULL REFERENCES trees,
    layer INTEGER NOT NULL REFERENCES trees,
    form INTEGER NOT NULL,
    parent INTEGER REFERENCES snapshots ON DELETE CASCADE,
    depth INTEGER NOT NULL,
    diff_id TEXT,
    content BLOB,
    tar_size INTEGER,
    chain_id TEXT UNIQUE,
    created_at INTEGER NOT NULL,
    boot TEXT
);
CREATE INDEX snapshots_tree ON snapshots (tree);
CREATE INDEX snapshots_layer ON snapshots (layer);
CREATE INDEX snapshots_parent ON snapshots (parent, content);
CREATE INDEX snapshots_diff_id ON snapshots (diff_id) WHERE diff_id IS NOT NULL;
CREATE INDEX snapshots_boot ON snapshots (boot) WHERE boot IS NOT NULL;

-- Known compressed forms of layers. label: how this program made it, NULL when it came from elsewhere.
CREATE TABLE layer_blobs (
    diff_id TEXT NOT NULL,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    media_suffix TEXT NOT NULL,
    label TEXT,
    PRIMARY KEY (diff_id, digest)
) WITHOUT ROWID;

-- A lease is alive while its file leases/<id> is locked.
CREATE TABLE leases (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    label TEXT NOT NULL,
    created_at INTEGER NOT NULL
);
CREATE TABLE lease_blobs (
    lease INTEGER NOT NULL REFERENCES leases ON DELETE CASCADE,
    blob INTEGER NOT NULL REFERENCES blobs ON DELETE CASCADE,
    PRIMARY KEY (lease, blob)
) WITHOUT ROWID;
CREATE INDEX lease_blobs_blob ON lease_blobs (blob);
CREATE TABLE lease_snapshots (
    lease INTEGER NOT NULL REFERENCES leases ON DELETE CASCADE,
    snapshot INTEGER NOT NULL REFERENCES snapshots ON DELETE CASCADE,
    PRIMARY KEY (lease, snapshot)
) WITHOUT ROWID;
CREATE INDEX lease_snapshots_snapshot ON lease_snapshots (snapshot);
CREATE TABLE lease_trees (
    lease INTEGER NOT NULL REFERENCES leases ON DELETE CASCADE,
    tree INTEGER NOT NULL REFERENCES trees ON DELETE CASCADE,
    PRIMARY KEY (lease, tree)
) WITHOUT ROWID;
CREATE INDEX lease_trees_tree ON lease_trees (tree);
