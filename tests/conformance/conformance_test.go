// Package conformance runs containerd's own snapshotter suite against a running nixsnap, through the client that
// containerd uses for proxy snapshotters.
//
// NIXSNAP_BIN names the nixsnap program, NIXSNAP_STORE_PATH a directory in /nix/store for the second run, and
// NIXSNAP_LOGS a directory for the daemons' logs. Every sub-test gets a daemon, a root and a socket of its own.
package conformance

import (
	"context"
	"os"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
)

// The suite takes from the name what to expect of directory renames: under "overlayfs" it leaves out the one of a
// lower layer's directory, which overlayfs refuses with EXDEV as long as it may not write redirects.
const profile = "overlayfs"

// TestPlainChains covers chains without a nix layer, where nixsnap must be containerd's overlayfs snapshotter.
func TestPlainChains(t *testing.T) {
	program := required(t, "NIXSNAP_BIN")
	testsuite.SnapshotterSuite(t, profile, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		daemon, err := startDaemon(program, root)
		if err != nil {
			return nil, nil, err
		}
		return daemon.snapshotter, daemon.stop, nil
	})
}

// TestAboveNixLayer covers chains that stand on a nix layer, so that every mount of the suite is a rootfs view.
//
// All sub-tests are allowed: the base below them ends in a layer that deletes /nix, so the suite finds the empty
// directory it expects of a snapshot without parent (see nixBase). What is visible in /nix/store of a view is the
// business of the system tests.
func TestAboveNixLayer(t *testing.T) {
	program, storePath := required(t, "NIXSNAP_BIN"), required(t, "NIXSNAP_STORE_PATH")
	testsuite.SnapshotterSuite(t, profile, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		daemon, err := startDaemon(program, root)
		if err != nil {
			return nil, nil, err
		}
		daemon.holdsViews = true
		base, err := newNixBase(ctx, daemon.snapshotter, root, storePath)
		if err != nil {
			return nil, nil, daemon.abort(err)
		}
		return base, daemon.stop, nil
	})
}

func required(t *testing.T, variable string) string {
	value := os.Getenv(variable)
	if value == "" {
		t.Fatalf("%s is not set; test_conformance.py sets it", variable)
	}
	return value
}
