package conformance

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
)

// TestSameAsOverlayfs gives nixsnap and containerd's overlayfs snapshotter the same calls, with no nix layer among
// them, and requires the same answers: mounts option by option, records, usage, kinds of errors.
func TestSameAsOverlayfs(t *testing.T) {
	directory := t.TempDir()
	ours, theirs := filepath.Join(directory, "ours"), filepath.Join(directory, "theirs")
	for _, root := range []string{ours, theirs} {
		if err := os.Mkdir(root, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	daemon, err := startDaemon(required(t, "NIXSNAP_BIN"), ours)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := daemon.stop(); err != nil {
			t.Error(err)
		}
	}()
	overlayfs, err := overlay.NewSnapshotter(theirs, overlay.WithRemapIDs)
	if err != nil {
		t.Fatal(err)
	}
	defer overlayfs.Close()

	got, want := transcript(daemon.snapshotter, ours), transcript(overlayfs, theirs)
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("nixsnap    %s\n\toverlayfs  %s", got[i], want[i])
		}
	}
}

// transcript makes the calls and returns a line for each: what was called and what came of it. Only what may differ
// between two snapshotters is taken out: the root's name, times, and the numbers of snapshots, which are counted in
// the order of their appearance.
func transcript(s snapshots.Snapshotter, root string) []string {
	ctx := namespaces.WithNamespace(context.Background(), "same")
	label := snapshots.WithLabels(map[string]string{"colour": "blue", "containerd.io/gc.root": "x"})
	r := &recorder{ctx: ctx, s: s, root: root, numbers: map[string]string{}}

	r.mounts("prepare alone", func() ([]mount.Mount, error) { return s.Prepare(ctx, "alone", "", label) })
	r.mounts("view of nothing", func() ([]mount.Mount, error) { return s.View(ctx, "nothing", "") })
	parent := ""
	for _, layer := range []string{"one", "two", "three"} {
		r.mounts("prepare "+layer, func() ([]mount.Mount, error) { return s.Prepare(ctx, layer+"-active", parent, label) })
		r.write(layer)
		r.mounts("mounts of "+layer, func() ([]mount.Mount, error) { return s.Mounts(ctx, layer+"-active") })
		r.usage(layer + "-active")
		r.result("commit "+layer, s.Commit(ctx, layer, layer+"-active", label))
		r.usage(layer)
		r.mounts("view of "+layer, func() ([]mount.Mount, error) { return s.View(ctx, layer+"-view", layer) })
		r.stat(layer)
		r.stat(layer + "-view")
		parent = layer
	}
	r.mapped()
	r.walk()
	r.walk("kind==view")
	r.walk("parent==two", "labels.colour==blue,kind==active")
	r.badCalls()
	for _, key := range []string{"mapped-upon-two", "mapped-alone", "mapped-view-of-one", "mapped-view-of-three"} {
		r.result("remove "+key, s.Remove(ctx, key))
	}
	for _, key := range []string{"three-view", "two-view", "one-view", "three", "two", "one", "nothing", "alone"} {
		r.result("remove "+key, s.Remove(ctx, key))
	}
	r.walk()
	return r.lines
}

// mapped makes snapshots for containers in user namespaces: what containerd's mount package is told, whose the directory
// that takes the writes is, and whose files are when containerd has mounted them.
func (r *recorder) mapped() {
	s, ctx := r.s, r.ctx
	several := snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotUIDMapping: "0:500000:1,1:600000:65535",
		snapshots.LabelSnapshotGIDMapping: "0:700000:65536",
	})
	one := snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotUIDMapping: "0:100000:65536",
		snapshots.LabelSnapshotGIDMapping: "0:100000:65536",
	})
	r.mounts("prepare mapped alone", func() ([]mount.Mount, error) { return s.Prepare(ctx, "mapped-alone", "", one) })
	r.mounts("prepare mapped upon two", func() ([]mount.Mount, error) { return s.Prepare(ctx, "mapped-upon-two", "two", several) })
	r.mounts("view of one, mapped", func() ([]mount.Mount, error) { return s.View(ctx, "mapped-view-of-one", "one", one) })
	r.mounts("view of three, mapped", func() ([]mount.Mount, error) { return s.View(ctx, "mapped-view-of-three", "three", several) })
	for _, key := range []string{"mapped-alone", "mapped-upon-two", "mapped-view-of-one", "mapped-view-of-three"} {
		r.mounts("mounts of "+key, func() ([]mount.Mount, error) { return s.Mounts(ctx, key) })
		r.stat(key)
		r.owners(key)
	}
	r.usage("mapped-upon-two")
}

// owners mounts a snapshot as containerd does, and records whose the files in it are.
func (r *recorder) owners(key string) {
	mounts, err := r.s.Mounts(r.ctx, key)
	if err != nil {
		r.result("owners in "+key, err)
		return
	}
	target, err := os.MkdirTemp(r.root, "mounted")
	if err == nil {
		defer os.Remove(target)
		err = mount.All(mounts, target)
	}
	if err != nil {
		r.result("mount "+key, err)
		return
	}
	defer mount.UnmountAll(target, 0)
	for _, name := range []string{".", "one-large", "two-directory"} {
		status, err := os.Lstat(filepath.Join(target, name))
		if err != nil {
			r.add("%s in %s: not there", name, key)
			continue
		}
		stat := status.Sys().(*syscall.Stat_t)
		r.add("%s in %s: %d:%d %s", name, key, stat.Uid, stat.Gid, status.Mode())
	}
}

type recorder struct {
	ctx     context.Context
	s       snapshots.Snapshotter
	root    string
	numbers map[string]string // a snapshot's number: the number it gets in the transcript
	lines   []string
}

var numberedDirectory = regexp.MustCompile(`snapshots/(\d+)`)

func (r *recorder) add(format string, arguments ...any) {
	line := strings.ReplaceAll(fmt.Sprintf(format, arguments...), r.root, "ROOT")
	line = numberedDirectory.ReplaceAllStringFunc(line, func(found string) string {
		if _, known := r.numbers[found]; !known {
			r.numbers[found] = fmt.Sprintf("snapshots/#%d", len(r.numbers)+1)
		}
		return r.numbers[found]
	})
	r.lines = append(r.lines, line)
}

func (r *recorder) result(call string, err error) {
	r.add("%s: %s", call, kind(err))
}

// kind names the class of an error, which is what a client of containerd acts upon.
func kind(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errdefs.IsNotFound(err):
		return "not found"
	case errdefs.IsAlreadyExists(err):
		return "already exists"
	case errdefs.IsFailedPrecondition(err):
		return "failed precondition"
	case errdefs.IsInvalidArgument(err):
		return "invalid argument"
	}
	return "unknown: " + err.Error()
}

func (r *recorder) mounts(call string, get func() ([]mount.Mount, error)) {
	mounts, err := get()
	for _, m := range mounts {
		slices.Sort(m.Options) // their order means nothing to mount(2)
	}
	r.add("%s: %s %+v", call, kind(err), mounts)
}

func (r *recorder) stat(key string) {
	info, err := r.s.Stat(r.ctx, key)
	r.add("stat %s: %s %s %q %v", key, kind(err), info.Kind, info.Parent, info.Labels)
}

func (r *recorder) usage(key string) {
	usage, err := r.s.Usage(r.ctx, key)
	r.add("usage of %s: %s %d bytes, %d inodes", key, kind(err), usage.Size, usage.Inodes)
}

func (r *recorder) walk(filters ...string) {
	var keys []string
	err := r.s.Walk(r.ctx, func(_ context.Context, info snapshots.Info) error {
		keys = append(keys, info.Name)
		return nil
	}, filters...)
	r.add("walk %q: %s %v", filters, kind(err), keys)
}

// write puts into a layer what usage has to count with care: a large file, a sparse one, a hard link, a directory.
func (r *recorder) write(layer string) {
	mounts, err := r.s.Mounts(r.ctx, layer+"-active")
	if err == nil {
		err = mount.WithTempMount(r.ctx, mounts, func(rootfs string) error {
			large := filepath.Join(rootfs, layer+"-large")
			if err := os.WriteFile(large, make([]byte, 100_000), 0o644); err != nil {
				return err
			}
			if err := os.Link(large, large+"-again"); err != nil {
				return err
			}
			sparse := filepath.Join(rootfs, layer+"-sparse")
			if err := os.WriteFile(sparse, nil, 0o644); err != nil {
				return err
			}
			if err := os.Truncate(sparse, 1<<30); err != nil {
				return err
			}
			return os.Mkdir(filepath.Join(rootfs, layer+"-directory"), 0o755)
		})
	}
	r.result("write into "+layer, err)
}

func (r *recorder) badCalls() {
	s, ctx := r.s, r.ctx
	r.mounts("prepare upon nothing known", func() ([]mount.Mount, error) { return s.Prepare(ctx, "x", "unknown") })
	r.mounts("prepare upon an active", func() ([]mount.Mount, error) { return s.Prepare(ctx, "x", "alone") })
	r.mounts("prepare upon a view", func() ([]mount.Mount, error) { return s.Prepare(ctx, "x", "one-view") })
	r.mounts("prepare a key twice", func() ([]mount.Mount, error) { return s.Prepare(ctx, "alone", "one") })
	r.mounts("view under a name", func() ([]mount.Mount, error) { return s.View(ctx, "two", "one") })
	r.mounts("mounts of a name", func() ([]mount.Mount, error) { return s.Mounts(ctx, "one") })
	r.mounts("mounts of nothing known", func() ([]mount.Mount, error) { return s.Mounts(ctx, "unknown") })
	r.result("commit a view", s.Commit(ctx, "new", "one-view"))
	r.result("commit a name", s.Commit(ctx, "new", "one"))
	r.result("commit nothing known", s.Commit(ctx, "new", "unknown"))
	r.result("commit onto a name", s.Commit(ctx, "one", "alone"))
	r.result("remove a parent", s.Remove(ctx, "one"))
	r.result("remove nothing known", s.Remove(ctx, "unknown"))
	r.stat("unknown")
	r.usage("unknown")
	for _, path := range []string{"name", "kind", "labels.colour", "labels", "created"} {
		info := snapshots.Info{Name: "one", Labels: map[string]string{"colour": "red"}}
		_, err := s.Update(ctx, info, path)
		r.result("update "+path, err)
		r.stat("one")
	}
	_, err := s.Update(ctx, snapshots.Info{Name: "unknown"})
	r.result("update nothing known", err)
	r.walk("kind=")
}
