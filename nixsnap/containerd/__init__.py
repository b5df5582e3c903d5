"""A client of containerd's own API: content, images, leases, snapshots and diff, and what is built from them.

Used by the command line and by the image service, never by the snapshotter.
"""
