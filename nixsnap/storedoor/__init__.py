"""The store door: root shows its store to users of this machine as if it were theirs, read-only (docs/security.md).

A user's daemon in a user namespace sees the machine's store as nobody's, and the kernel lets only the owner of a file
system idmap it. So a small helper that runs as root makes the mount and hands it over a Unix socket. Root's side is
`server`, `peer`, `policy`, `limits` and `grant`; the user's is `client`.
"""
