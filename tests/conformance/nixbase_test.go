package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"
)

// nixBase is a Snapshotter whose every chain secretly stands on a nix layer.
//
// Its two snapshots, which it hides from the suite, are
//
//	nix-layer   a nix layer: its labels name one store path
//	nix-hidden  its child, in which /nix was deleted
//
// A parent of "" becomes nix-hidden, and nix-hidden is reported as "". The suite compares whole directory trees with
// ones that start empty, so /nix may not show; as a whiteout above the nix layer it does not, and the chain is a nix
// chain all the same: overlay redirects, the store at the bottom, one mount from a rootfs view.
type nixBase struct {
	snapshots.Snapshotter
	views string // where every mount's source must lie
}

const (
	nixLayer  = "nix-layer"
	nixHidden = "nix-hidden"
)

func newNixBase(ctx context.Context, s snapshots.Snapshotter, root, storePath string) (*nixBase, error) {
	base := &nixBase{Snapshotter: s, views: filepath.Join(root, "views") + "/"}
	labels := snapshots.WithLabels(map[string]string{
		"containerd.io/snapshot/nix-layer":        "true",
		"containerd.io/snapshot/nix-store-path.0": storePath,
	})
	if _, err := s.Prepare(ctx, nixLayer+"-prepare", "", labels); err != nil {
		return nil, err
	}
	if err := s.Commit(ctx, nixLayer, nixLayer+"-prepare", labels); err != nil {
		return nil, err
	}
	mounts, err := s.Prepare(ctx, nixHidden+"-prepare", nixLayer)
	if err != nil {
		return nil, err
	}
	if err := base.requireView(mounts); err != nil {
		return nil, err
	}
	if err := mount.WithTempMount(ctx, mounts, func(rootfs string) error { return deleteNix(rootfs, storePath) }); err != nil {
		return nil, err
	}
	return base, s.Commit(ctx, nixHidden, nixHidden+"-prepare")
}

// deleteNix removes /nix from a rootfs that shows storePath, and sees to it that the host's own copy stays.
func deleteNix(rootfs, storePath string) error {
	before, err := os.ReadDir(storePath)
	if err != nil {
		return err
	}
	inside, err := os.ReadDir(filepath.Join(rootfs, storePath))
	if err != nil {
		return err
	}
	if len(before) == 0 || len(inside) != len(before) {
		return fmt.Errorf("%s has %d entries on the host and %d in the view", storePath, len(before), len(inside))
	}
	if err := os.RemoveAll(filepath.Join(rootfs, "nix")); err != nil {
		return err
	}
	after, err := os.ReadDir(storePath)
	if err != nil {
		return err
	}
	if len(after) != len(before) {
		return fmt.Errorf("deleting in a view changed the host's %s", storePath)
	}
	return nil
}

// requireView fails unless mounts are the one bind mount of a rootfs view.
func (b *nixBase) requireView(mounts []mount.Mount) error {
	if len(mounts) != 1 || mounts[0].Type != "bind" || !strings.HasPrefix(mounts[0].Source, b.views) {
		return fmt.Errorf("want one bind mount from below %s, not %+v", b.views, mounts)
	}
	return nil
}

func (b *nixBase) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := b.Snapshotter.Prepare(ctx, key, below(parent), opts...)
	if err != nil {
		return nil, err
	}
	return mounts, b.requireView(mounts)
}

func (b *nixBase) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := b.Snapshotter.View(ctx, key, below(parent), opts...)
	if err != nil {
		return nil, err
	}
	return mounts, b.requireView(mounts)
}

func (b *nixBase) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	mounts, err := b.Snapshotter.Mounts(ctx, key)
	if err != nil {
		return nil, err
	}
	return mounts, b.requireView(mounts)
}

func (b *nixBase) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	info, err := b.Snapshotter.Stat(ctx, key)
	return hidden(info), err
}

func (b *nixBase) Update(ctx context.Context, info snapshots.Info, paths ...string) (snapshots.Info, error) {
	info, err := b.Snapshotter.Update(ctx, info, paths...)
	return hidden(info), err
}

// Walk applies the filters itself, after hiding: `parent!=""` asked of the daemon would find what stands on the base.
// The daemon's own filters are covered by TestPlainChains.
func (b *nixBase) Walk(ctx context.Context, fn snapshots.WalkFunc, filter ...string) error {
	wanted, err := filters.ParseAll(filter...)
	if err != nil {
		return err
	}
	own := 0
	err = b.Snapshotter.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		if info.Name == nixLayer || info.Name == nixHidden {
			own++
			return nil
		}
		if info = hidden(info); !wanted.Match(adapt(info)) {
			return nil
		}
		return fn(ctx, info)
	})
	if err == nil && own != 2 {
		err = errors.New("the base's own two snapshots were not listed")
	}
	return err
}

func below(parent string) string {
	if parent == "" {
		return nixHidden
	}
	return parent
}

func hidden(info snapshots.Info) snapshots.Info {
	if info.Parent == nixHidden {
		info.Parent = ""
	}
	return info
}

// adapt gives a snapshot's fields to the filter language: name, parent, kind and labels.
func adapt(info snapshots.Info) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		switch path[0] {
		case "name":
			return info.Name, true
		case "parent":
			return info.Parent, true
		case "kind":
			return strings.ToLower(info.Kind.String()), true
		case "labels":
			value, ok := info.Labels[strings.Join(path[1:], ".")]
			return value, ok
		}
		return "", false
	})
}
